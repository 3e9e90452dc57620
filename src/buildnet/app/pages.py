"""The application behind the door's HTTP: the page, its data, the ledger's tiles. No logic.

It is imported when the first of them is asked for: a controller that only caches needs none of it.
"""

from __future__ import annotations

from buildnet import __version__
from buildnet.app.grounds import Grounds
from buildnet.edge.web import api, ledger, page
from buildnet.edge.web.app import application
from buildnet.edge.web.asgi import Application
from buildnet.edge.web.view import View
from buildnet.ports import Clock


def pages(view: View, grounds: Grounds, clock: Clock) -> Application:
    """All that is served to browsers and monitors.

    Raises:
        StateCorrupt: the page that was built is larger than one may be.
    """
    return application(
        page.routes(),
        api.routes(view, grounds.ledger, clock, __version__),
        ledger.routes(grounds.ledger, grounds.cosigned, grounds.witnesses.standings),
    )
