"""Ready-made logs: a job that has already said a given text, written without a worker."""

import hashlib

import asyncpg
import msgspec

from tramontane.ids import read_id


async def write_log(database_url: str, job_id: str, pieces: list[str], *, finish: bool = True) -> str:
    """Give a queued job a log of one chunk per piece, and an end; returns the whole text."""
    text = "".join(pieces)
    bodies: list[tuple[str, dict[str, object]]] = [("start", {"status": "started"})]
    offset = 0
    for number, piece in enumerate(pieces, 1):
        bodies.append(("chunk", {"off": offset, "content": piece, "tokenCount": number}))
        offset += len(piece.encode("utf-16-le")) // 2
    if finish:
        digest = hashlib.sha256(text.encode()).hexdigest()
        bodies.append(("complete", {"len": offset, "sha256": digest, "totalTokens": len(pieces), "usage": None}))
    identity = read_id("job", job_id)
    connection = await asyncpg.connect(database_url, server_settings={"search_path": "tramontane"})
    try:
        async with connection.transaction():
            await connection.execute(
                "INSERT INTO events SELECT 'default', $1, seq, 1, type, body::json, now()"
                " FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS given (type, body, seq)",
                identity,
                [kind for kind, _ in bodies],
                [msgspec.json.encode(body).decode() for _, body in bodies],
            )
            await connection.execute(
                "UPDATE jobs SET head = $2, attempt = 1, state = $3, completed_at = CASE WHEN $4 THEN now() END,"
                " admitted_at = NULL WHERE id = $1",
                identity,
                len(bodies),
                "completed" if finish else "running",
                finish,
            )
    finally:
        await connection.close()
    return text
