# Reads the plans of a worker out of a server's log (auto_explain, json, log_line_prefix '@%b|%p|').
#   perl plans.pl source target log
# Prints: batches, buffers per examined row in the first and in the last one, the largest through the smallest
# of all, and the longest statement in ms. On stderr: which statement that search is, and the longest one.
use strict;
use warnings;
use JSON::PP;

my ($source, $target, $file) = @ARGV;
open my $log, '<', $file or die "$file: $!\n";

# Records begin with the prefix; an own line feed is followed by a tab.
my (@records, $current);
while (my $line = <$log>)
{
	if ($line =~ /^\@([^|]*)\|\d+\|LOG:  duration: ([0-9.]+) ms  plan:/ && $1 eq 'bgw_backfill worker')
	{
		push @records, { ms => $2, json => '' };
		$current = $records[-1];
	}
	elsif ($line =~ /^\@/)
	{
		undef $current;
	}
	elsif ($current)
	{
		$current->{json} .= $line;
	}
}
die "no plan of a worker in the log\n" unless @records;

# Every scan of a relation below a node: rows that it looked at.
sub scans
{
	my ($node, $relation) = @_;
	my @found;
	if (($node->{'Relation Name'} // '') eq $relation && exists $node->{'Node Type'} && $node->{'Node Type'} =~ /Scan/)
	{
		push @found,
		  $node->{'Actual Loops'} * ($node->{'Actual Rows'} + ($node->{'Rows Removed by Filter'} // 0));
	}
	push @found, scans($_, $relation) for @{ $node->{Plans} // [] };
	return @found;
}

# The part of a plan that only reads: below the lowest node that locks or modifies rows, if there is one.
sub reading
{
	my ($node) = @_;
	for my $child (@{ $node->{Plans} // [] })
	{
		my $found = reading($child);
		return $found if $found;
	}
	return $node->{'Node Type'} =~ /^(LockRows|ModifyTable)$/ ? $node->{Plans}[0] : undef;
}

sub buffers { my ($node) = @_; return $node->{'Shared Hit Blocks'} + $node->{'Shared Read Blocks'}; }

sub largest { my $m = shift // 0; $_ > $m and $m = $_ for @_; return $m; }

# A statement over both tables; what locks or modifies the rows that it found is no part of the search.
my %search;
my $order = 0;
for my $record (@records)
{
	my $plan = decode_json($record->{json});
	$record->{text} = $plan->{'Query Text'} // '';
	$record->{text} =~ s/\s+/ /g;
	my $node = reading($plan->{Plan}) // $plan->{Plan};
	my @source = scans($node, $source);
	next unless @source && scans($node, $target);
	# The first batch, without a lower bound, has a text of its own that begins alike.
	push @{ $search{ substr($record->{text}, 0, 30) } },
	  { rows => largest(@source), buffers => buffers($node), locks => buffers($plan->{Plan}) - buffers($node) };
}

# The statements that decide or repair look like it but see few rows: the search is what sees most.
sub examined { my $sum = 0; $sum += $_->{rows} for @{ $search{ $_[0] } }; return $sum; }
my ($text) = sort { examined($b) <=> examined($a) } keys %search;
die "no search over $source and $target in the log\n" unless defined $text;
my $most = largest(map { $_->{rows} } @{ $search{$text} });

# A last batch with a handful of rows says nothing: the way down the index alone is three buffers.
my @batches = map { $_->{buffers} / $_->{rows} } grep { $_->{rows} >= $most / 2 } @{ $search{$text} };
my ($min, $max) = (sort { $a <=> $b } @batches)[ 0, -1 ];
my ($longest) = sort { $b->{ms} <=> $a->{ms} } @records;
printf "%d %.4f %.4f %.3f %.1f\n", scalar @batches, $batches[0], $batches[-1], $max / $min, $longest->{ms};
printf STDERR "search: %s ...\n", $text;
printf STDERR "%d of %d batches; buffers per row from %.4f to %.4f\n", scalar @batches, scalar @{ $search{$text} }, $min, $max;
printf STDERR "beside these, locking what was found: at most %d buffers in a batch\n", largest(map { $_->{locks} } @{ $search{$text} });
my (%total, %calls);
for (@records) { $total{ $_->{text} } += $_->{ms}; $calls{ $_->{text} }++; }
my @costly = sort { $total{$b} <=> $total{$a} } keys %total;
printf STDERR "%.0f ms in %d calls: %.90s\n", $total{$_}, $calls{$_}, $_ for grep { defined } @costly[ 0 .. 3 ];
printf STDERR "longest, %.1f ms: %.160s\n", $longest->{ms}, $longest->{text};
