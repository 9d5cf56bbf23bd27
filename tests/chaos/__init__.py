"""The fleet under everything that can go wrong at once, and the proof that nothing was lost or doubled.

    town       the processes: Postgres, servers, workers, receivers, a simulated Mistral with limits
    crowd      tenants who submit, read, cancel, and write down what they were promised
    faults     what is done to the town meanwhile
    gathering  what everybody says afterwards: the API, Mistral's ledger, the receivers' logs
    evidence   the values of that
    checks     what must be true of it; pure
    report     the table for people
    recovery   how soon somebody else goes on where a process was killed

`python -m chaos` with tests and tests/e2e on the path; `make chaos` knows that.
"""
