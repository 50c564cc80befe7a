"""Listings of a bucket: a page at a time, each of which can be asked for again.

The obstore library reads keys as paths: a page with a key that is none (`a//b`, `a/./b`, control
characters) fails whole, and slashes at a key's ends are dropped. Such listings are left to boto3.
"""

from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import InvalidPathError

from headct.errors import StoreError

if TYPE_CHECKING:
    from headct.stores.exact_listing import ExactListing

Item = dict[str, Any]  # an object's path, size, and e_tag, version or last_modified, as of obstore

_PAGE = 1000  # objects a request lists
_BEFORE_SLASH = ".\U0010ffff"  # no usable key lies between this and those that begin with a slash
_AFTER_SLASH = "0"
_LISTED_EXACTLY = ("s3://", "s3a://", "gs://")


class Pages:
    """A listing, a page at a time; after a failure it continues behind the last object seen.

    Args:
        store: obstore's.
        folder: whose objects are wanted; empty for the whole bucket.
        url: of the bucket.
    """

    def __init__(self, store: Any, folder: str, url: str) -> None:
        self._store, self._folder, self._url = store, folder, url
        self._pages: Any = None
        self._last: str | None = None
        self._exact: ExactListing | None = None

    def next(self) -> list[Item]:
        """The next objects; none at the end.

        Raises:
            StoreError: a key is none that can be listed.
        """
        if self._exact is None:
            try:
                whole = self._last is None and not self._folder
                if not (whole and _begins_with_slash(self._store)):
                    return self._usable_page()
            except InvalidPathError:
                pass
            self._exact = self._exactly()
        return self._exact.next()

    def _exactly(self) -> "ExactListing":
        if not self._url.startswith(_LISTED_EXACTLY):
            what = "an object's key has '//', '.', '..' or a control character"
            raise StoreError(self._url, what, "rename it")
        from headct.stores.exact_listing import ExactListing  # boto3 loads for a while

        return ExactListing(self._url, self._folder, self._last)

    def _usable_page(self) -> list[Item]:
        if self._pages is None:
            prefix = self._folder or None
            pages = obstore.list(self._store, prefix, offset=self._last, chunk_size=_PAGE)
            self._pages = iter(pages)
        pages, self._pages = self._pages, None  # which stays so if the request fails
        found = list(next(pages, []))
        self._pages = pages
        # The greatest, not the last: a folder's marker comes in the place of its whole key.
        self._last = max([self._last or "", *(item["path"] for item in found)], key=str.encode)
        return found


def _begins_with_slash(store: Any) -> bool:
    """Whether keys of a bucket begin with a slash, which obstore does not show."""
    here, behind = (
        [item["path"] for item in next(iter(obstore.list(store, offset=offset)), [])]
        for offset in (_BEFORE_SLASH, _AFTER_SLASH)
    )
    if here[:1] == [_AFTER_SLASH]:
        here = here[1:]
    shorter = min(len(here), len(behind))
    return here[:shorter] != behind[:shorter]
