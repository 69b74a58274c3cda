"""The sandbox's HTTP server: start and stop; log, faults, login and handler of every request."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from aiohttp import web

from xnatuploader.sandbox import (
    answers,
    auth,
    bodies,
    catalogs,
    control,
    hierarchy,
    importing,
    options,
    prearchive_urls,
    routing,
    siteinfo,
    store,
    usercache,
)
from xnatuploader.sandbox.calls import Call, LoggedRequest, Site
from xnatuploader.sandbox.faults import Fault

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
"""The only address a sandbox ever listens on."""
_READ_BUFFER = 1 << 19

Answer = Callable[[Call], Awaitable[web.StreamResponse]]
Around = Callable[[Call, Answer], Awaitable[web.StreamResponse]]
"""Stands around every answer: it may answer itself, or have the sandbox answer and change what it says."""


async def plainly(call: Call, answer: Answer) -> web.StreamResponse:
    """Have the sandbox answer."""
    return await answer(call)


class RequestHandler:
    """Takes every request; there is one for a running sandbox."""

    def __init__(self, site: Site, around: Around) -> None:
        self.site = site
        self._around = around

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request: log it, apply faults, identify the user, call the handler of its address."""
        raw, _, _ = request.raw_path.partition("?")
        segments = raw.split("/")[1:]
        if segments[0] == "sandbox":
            return await control.handle(self.site, request, segments[1:])
        call = self._begin(request, segments)
        started = time.monotonic()
        try:
            response = await self._with_faults(call)
            await self._send(call, response)
            call.logged.status = response.status
            call.logged.sent = response.content_length or 0
        except answers.Cut:
            _abort(request)
            response = web.Response(status=499)
        finally:
            call.logged.seconds = time.monotonic() - started
        return response

    def _begin(self, request: web.BaseRequest, segments: list[str]) -> Call:
        site = self.site
        site.counted += 1
        agent = request.headers.get("User-Agent", "")
        logged = LoggedRequest(site.counted, time.time(), request.method, request.raw_path, agent=agent)
        site.log.append(logged)
        plan = site.faults.plan(request.method, request.raw_path)
        logged.faults = plan.names()
        return Call(request=request, site=site, logged=logged, plan=plan, segments=segments)

    async def _with_faults(self, call: Call) -> web.StreamResponse:
        delay = call.settings.latency + sum(one.seconds for one in call.plan.faults if one.do == "latency")
        if delay:
            await asyncio.sleep(delay)
        early = await _by_fault(call, "before")
        if early is not None:
            call.by_proxy = True
            return early
        try:
            response = await self._around(call, self._answer)
        except _ProxyRefusal as refusal:
            call.by_proxy = True
            page = refusal.message
            response = web.Response(status=refusal.status, text=page, content_type="text/html")
        except answers.Refusal as refusal:
            response = answers.refused(refusal)
        except OSError as error:
            log.warning("%s %s: %s", call.request.method, call.request.path, error)
            response = answers.refused(answers.Refusal(500, f"{type(error).__name__}: {error}"))
        late = await _by_fault(call, "after")
        return response if late is None else late

    async def _answer(self, call: Call) -> web.StreamResponse:
        _proxy(call)
        segments, context = call.segments, self.site.options.context
        if context:
            if segments[0] != context.strip("/"):
                raise answers.Refusal(404, "There is no such application; the context path is missing")
            segments = segments[1:] or [""]
        call.login = auth.identify(call)
        if call.login is not None:
            call.logged.user = call.login.user.name
        if call.plan.find("kill-session") and call.login is not None:
            self.site.logins.pop(call.login.id, None)
            call.login = None
        if call.login is None and not _is_open(segments):
            raise auth.challenge(call)
        auth.check_csrf(call)
        return await _route(call, segments)

    async def _send(self, call: Call, response: web.StreamResponse) -> None:
        """Send the answer with its cookies. A large body that was not read ends the connection, as with Tomcat."""
        for value in auth.cookies(call):
            response.headers.add("Set-Cookie", value)
        unread = (call.request.content_length or 0) - call.logged.received
        wanted = call.logged.received or call.by_proxy or not call.request.can_read_body
        if wanted or unread <= call.settings.max_swallow:
            return
        await response.prepare(call.request)
        await response.write_eof()
        call.logged.status = response.status
        raise answers.Cut("the rest of the body is not read")


def _abort(request: web.BaseRequest) -> None:
    transport = request.transport
    if transport is not None:
        transport.abort()


def _proxy(call: Call) -> None:
    """Refuse what a proxy in front of XNAT would refuse: bodies that are too large, archives."""
    limit, length = call.settings.body_limit, call.request.content_length or 0
    if limit and length > limit:
        page = "<html><head><title>413 Request Entity Too Large</title></head><body><center>"
        raise _ProxyRefusal(413, page + "<h1>413 Request Entity Too Large</h1></center></body></html>")
    if call.settings.refuse_archives and call.flag("extract"):
        status = call.settings.refuse_archives
        page = f"<html><head><title>{status}</title></head><body><center><h1>{status} Refused by proxy</h1>"
        raise _ProxyRefusal(status, page + "</center></body></html>")


class _ProxyRefusal(answers.Refusal):
    """An answer of a proxy, not of XNAT: `message` is the whole page."""


async def _by_fault(call: Call, when: str) -> web.StreamResponse | None:
    """Apply the faults that strike `before` the request is read, or `after` the work was done."""
    await bodies.break_as_ordered(call, when)
    page = call.plan.find("html") if when == "before" else None
    if page is not None:
        text = (
            page.message
            or "<!DOCTYPE html><html><head><title>Welcome</title></head><body>Hello</body></html>"
        )
        return web.Response(text=text, content_type="text/html")
    status = call.plan.find("status", when)
    return _ordered(status) if status is not None else None


def _ordered(fault: Fault) -> web.Response:
    status = fault.status or 503
    headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
    return answers.refused(
        answers.Refusal(
            status, fault.message or f"A fault was set for this request: status {status}", headers
        )
    )


# -- routes --------------------------------------------------------------------------------------------------


def _is_open(segments: list[str]) -> bool:
    """Tell whether a URL is answered without a login."""
    if segments[0] in ("", "app", "images", "style", "scripts"):
        return True
    if segments[0] == "xapi":
        return siteinfo.is_open(segments[1:])
    return segments[0] in ("data", "REST") and segments[1:] in (["JSESSION"], ["services", "auth"])


async def _route(call: Call, segments: list[str]) -> web.StreamResponse:
    first, rest = segments[0], segments[1:]
    if first == "":
        return await siteinfo.home(call)
    if first == "app":
        return await siteinfo.login_page(call)
    if first == "xapi":
        return await siteinfo.xapi(call, rest)
    if first not in ("data", "REST"):
        raise answers.unknown_address()
    if rest == ["services", "auth"]:  # XNAT attaches it separately, because it needs no login
        return await auth.auth_service(call)
    found = routing.match(rest)
    if found is not None and found.segments[0] in ("projects", "subjects", "experiments"):
        return await hierarchy.handle(call, found)
    handler = _DATA.get(found.segments[0]) if found is not None else None
    if handler is None:
        raise answers.unknown_address()
    return await handler(call, rest[1:])


async def _services(call: Call, rest: list[str]) -> web.StreamResponse:
    word = rest[0] if rest else ""
    if word == "tokens":
        return await auth.tokens(call, rest[1:])
    if word == "import":
        return await importing.handle(call)
    if word == "archive":
        return await prearchive_urls.archive_service(call)
    if word == "prearchive":
        return await prearchive_urls.batch(call, rest[1:])
    if rest == ["refresh", "catalog"]:
        return await catalogs.refresh(call)
    raise answers.unknown_address()


_DATA: dict[str, Callable[[Call, list[str]], Awaitable[web.StreamResponse]]] = {
    "JSESSION": lambda call, rest: auth.jsession(call),
    "auth": lambda call, rest: auth.who(call),
    "services": _services,
    "search": siteinfo.search,
    "prearchive": prearchive_urls.handle,
    "status": importing.status,
    "user": usercache.handle,
    "users": lambda call, rest: siteinfo.users(call),
}


# -- start and stop ------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def started(
    chosen: options.SandboxOptions, around: Around = plainly
) -> AsyncIterator[tuple[str, Site]]:
    """Run a sandbox as long as the `with` block lasts; yield its URL and the site.

    A port that is in use and a folder that cannot be written are an OSError.
    """
    folder = Path(chosen.folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = store.Store(folder)
    try:
        site = Site(chosen, kept)
        loop = asyncio.get_running_loop()
        loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(max_workers=64))
        server = web.Server(RequestHandler(site, around).handle, read_bufsize=_READ_BUFFER, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await runner.setup()
        try:
            listener = web.TCPSite(runner, HOST, chosen.port, ssl_context=_tls(chosen))
            await listener.start()
            site.spawn(_keep_catalogs(site))
            site.spawn(prearchive_urls.session_builder(site))
            yield _url(chosen, runner), site
        finally:
            for task in list(site.background):
                task.cancel()
            await runner.cleanup()
    finally:
        kept.close()


def _url(chosen: options.SandboxOptions, runner: web.ServerRunner) -> str:
    scheme = "https" if chosen.cert else "http"
    return f"{scheme}://{HOST}:{runner.addresses[0][1]}{chosen.context}"


def _tls(chosen: options.SandboxOptions) -> ssl.SSLContext | None:
    if not chosen.cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(chosen.cert, chosen.key or None)
    except OSError as error:  # it names no file
        files = f"{chosen.cert} and {chosen.key}" if chosen.key else chosen.cert
        raise OSError(f"no certificate with its key can be read from {files} ({error})") from error
    return context


async def _keep_catalogs(site: Site) -> None:
    """Write changed catalog files every two seconds: after each file would be slow for large resources."""
    while True:
        await asyncio.sleep(2.0)
        site.store.write_catalogs()


async def serve(
    chosen: options.SandboxOptions,
    ready: Callable[[str], None],
    stop: asyncio.Event | None = None,
    around: Around = plainly,
) -> None:
    """Run a sandbox until `stop` is set or the task is cancelled; `ready` is called with the URL once it listens."""
    async with started(chosen, around) as (url, _):
        ready(url)
        await (stop or asyncio.Event()).wait()
