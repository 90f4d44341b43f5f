"""A job's log as the cluster sends it on while it grows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from ssl import SSLContext


async def tail(url: str, headers: Mapping[str, str], verify: SSLContext | bool) -> AsyncIterator[str]:
    """Parts of the log, from its beginning, until the connection ends.

    As Ray's own client has it, but follows no redirection: it would show the headers to another server.

    Raises:
        aiohttp.ClientError: there is no such connection.
    """
    import aiohttp

    async def refuse(*_: object) -> None:
        raise aiohttp.ClientConnectionError("sends requests elsewhere")

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(refuse)
    async with aiohttp.ClientSession(headers=headers, trace_configs=[trace]) as session:
        connection = await session.ws_connect(url, ssl=verify)
        async for message in connection:
            if message.type is not aiohttp.WSMsgType.TEXT:
                return
            yield message.data
