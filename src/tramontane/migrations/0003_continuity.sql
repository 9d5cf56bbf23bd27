-- A later attempt goes on with the text of the earlier ones.

-- Whether it may: `never` starts from nothing each time.
ALTER TABLE jobs ADD COLUMN resume text NOT NULL DEFAULT 'auto' CHECK (resume IN ('auto', 'never'));

-- What Mistral reported of this attempt, byte for byte; and whether it may have billed it without saying so.
ALTER TABLE job_attempts ADD COLUMN usage json;
ALTER TABLE job_attempts ADD COLUMN unreported boolean NOT NULL DEFAULT false;
