# shellcheck shell=bash
# Folders with a Debian of their own; to be sourced, by scripts of root's.
#
#   own_mounts "$@"           starts the script anew in a mount namespace of its own: nothing is left mounted after it
#   bootstrap SUITE FOLDER    an unpacked base system from the machine's own Debian mirror
#   fail TEXT                 ends the script

export LC_ALL=C DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
unset TMPDIR

fail()
{
	echo "$*" >&2
	exit 1
}

own_mounts()
{
	if [ -z "${BBF_IN_NAMESPACE:-}" ]; then
		[ "$(id -u)" -eq 0 ] || fail "a folder with a Debian of its own needs root"
		unshare --mount true 2>/dev/null || fail "this machine allows no mount namespace"
		BBF_IN_NAMESPACE=1 exec unshare --mount --propagation private "$0" "$@"
	fi
	unset BBF_IN_NAMESPACE
}

# shellcheck disable=SC2016 # apt-get's own names
mirror()
{
	apt-get indextargets --format '$(ORIGIN) $(LABEL) $(SITE)' 'Created-By: Packages' |
		awk '$1 == "Debian" && $2 == "Debian" { print $3; exit }'
}

bootstrap()
{
	local site script
	site=$(mirror)
	if [ -z "$site" ]; then
		apt-get update -qq
		site=$(mirror)
	fi
	[ -n "$site" ] || fail "no Debian mirror among this machine's package sources"
	if ! command -v debootstrap >/dev/null; then
		apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 debootstrap ||
			fail "debootstrap is missing"
	fi
	# A suite younger than this debootstrap is made like sid.
	script=$1
	[ -e "/usr/share/debootstrap/scripts/$1" ] || script=sid
	debootstrap --variant=minbase "$1" "$2" "$site" "$script"
}
