-- The triggers that were first proposed: row by row, in plpgsql.
CREATE FUNCTION proposed_set() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	UPDATE events SET has_embedding = true WHERE id = NEW.event_id;
	RETURN NULL;
END $$;

CREATE FUNCTION proposed_clear() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	UPDATE events SET has_embedding = false WHERE id = OLD.event_id;
	RETURN NULL;
END $$;

CREATE TRIGGER proposed_set AFTER INSERT ON event_embeddings FOR EACH ROW EXECUTE FUNCTION proposed_set();
CREATE TRIGGER proposed_clear AFTER DELETE ON event_embeddings FOR EACH ROW EXECUTE FUNCTION proposed_clear();
