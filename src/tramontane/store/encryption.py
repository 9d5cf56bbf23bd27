"""Which keys the database's secrets were encrypted with, by their names."""

from collections.abc import Sequence

from tramontane.errors import SecretsLocked
from tramontane.store.rows import Pool
from tramontane.store.statements import Statements

SQL = Statements("encryption")


class EncryptionStore:
    """The one verb about keys."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def acquaint(self, fingerprints: Sequence[str]) -> None:
        """Make this process's keys known, the sealing one first.

        Raises SecretsLocked when secrets were encrypted with a key that is not among them, and when it has none and
        others have.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            if fingerprints:
                await connection.execute(SQL.add_key, fingerprints[0])
            foreign = await connection.fetchval(SQL.other_key, list(fingerprints))
            if foreign is not None and not fingerprints:
                raise SecretsLocked(
                    f"secrets in this database are encrypted with a key ({foreign}) that is missing here: set "
                    "TRAMONTANE_ENCRYPTION_KEY to the same value as for every other process"
                )
            if foreign is not None:
                raise SecretsLocked(
                    f"the database holds secrets that were encrypted with another key ({foreign}): add that one to "
                    "TRAMONTANE_ENCRYPTION_KEY, behind the new one"
                )
