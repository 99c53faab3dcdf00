"""The texts of the game Battle for Wesnoth (GPL-2+) and their translations, from gettext's compiled `.mo` files."""

import gettext
import html
import pathlib
import re
import struct

from swin_jax.errors import UserError, did_you_mean

FOLDER = "data/wesnoth"
_TAG = re.compile(r"</?[a-z]+(?:\s[^<>]*)?/?>")
_HELP_TAG = re.compile(r"<([a-z]+)>\s*text='([^<>]*)'\s*</\1>")  # the older way: <italic>text='so'</italic>
_CONTEXT = re.compile(r"[^^\n]*\^")


def read_pairs(folder: pathlib.Path, language: str) -> list[tuple[str, str]]:
    """Return (English, translation) of every message of `folder/LANGUAGE/*.mo`, in the order of files and messages.

    Pango's tags (`<i>`, `<span color='red'>`) are stripped, and a leading context (`female^`), which is not shown in
    the game. Variables (`$unit.name|`) stay. White space, line ends among it, becomes single spaces: a text is a line.
    Left out are messages that are empty or the same in both languages (names, and what nobody translated). Of a
    message with plural forms the first is taken.
    """
    languages = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not languages:
        raise UserError(
            f"there are no translations in {folder}; run 'make wesnoth' to fetch them, or set data.data_dir"
        )
    if language not in languages:
        near = did_you_mean(language, languages)
        raise UserError(f"there is no language {language!r} in {folder}, known: {', '.join(languages)}{near}")
    pairs = []
    for path in sorted((folder / language).glob("*.mo")):
        for message, translation in _read_mo(path):
            source, target = clean(message), clean(translation, has_context="^" in message)
            if source and target and source != target:
                pairs.append((source, target))
    return pairs


def clean(text: str, *, has_context: bool = True) -> str:
    """Return a message as the game shows it, without markup, on one line."""
    if has_context:
        context = _CONTEXT.match(text)
        text = text[context.end() :] if context else text
    text = _TAG.sub("", _HELP_TAG.sub(r"\2", text))
    return " ".join(html.unescape(text).split())


def _read_mo(path: pathlib.Path) -> list[tuple[str, str]]:
    try:
        with path.open("rb") as file:
            catalog = gettext.GNUTranslations(file)._catalog  # the library has no public way to list the messages
    except (OSError, ValueError, struct.error, LookupError) as error:
        raise UserError(f"cannot read the translations {path}: {error}") from error
    pairs = []
    for message, translation in catalog.items():
        if isinstance(message, tuple):  # (singular, number of the plural form)
            if message[1] == 0:
                pairs.append((message[0], translation))
        elif message:  # the empty one is the file's header
            pairs.append((message, translation))
    return pairs
