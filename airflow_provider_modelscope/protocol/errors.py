"""What an error of the service means: one table, by its textual code, then its words, then its status."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Container, Iterable
from dataclasses import dataclass
from itertools import chain

from airflow_provider_modelscope.exceptions import (
    AccountNotReadyError,
    AuthenticationError,
    ModelScopeError,
    ModelScopeFinalError,
    QueueFullError,
    QuotaExhaustedError,
    RateLimitedError,
    RequestRejectedError,
    ServiceUnavailableError,
    UnknownModelError,
)

FAILED_STATUS = 0  # in place of the HTTP status, for a generation that FAILED by a fault of the service
_OF_A_RESPONSE = range(1, 500)
_ANY = range(1000)


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """One row of the table.

    :param problem: What failed, as the error says it.
    :param advice: What to do, with the names of the properties of an account that are addresses.
    :param codes: Regular expression of the textual codes, in lower case and letters only.
    :param words: Regular expression of words in the message, in lower case. From status 500 on they count at
        its start only.
    :param words_at: The statuses at which the words count. After most 5xx something may have been created.
    :param statuses: The statuses that mean this if neither code nor words are known.
    """

    kind: type[ModelScopeError]
    problem: str
    advice: str = ""
    codes: str = ""
    words: str = ""
    words_at: Container[int] = range(500)
    statuses: Container[int] = ()

    @property
    def is_final(self) -> bool:
        """Whether the same request would fail again."""
        return issubclass(self.kind, ModelScopeFinalError)


UNAVAILABLE = Meaning(kind=ServiceUnavailableError, problem="ModelScope is unavailable")

# The first row that matches counts. Words are those of the service or of sister services, in both languages.
# What a message merely repeats is removed before they are searched.
MEANINGS = (
    Meaning(
        kind=QuotaExhaustedError,
        problem="No credit, or the model is no longer served",
        advice="The balance at {credit_url} decides: if there is credit, use another model",
        words=r"balance ?\(1008\)",
    ),
    Meaning(
        kind=QuotaExhaustedError,
        problem="The account's credit is used up",
        advice="Get credit at {credit_url}: it is granted to a person who visits the site while logged in",
        codes="quotalimitexceed(ed)?|arrearage",
        words=(
            r"\b(magicubes?|balance|credits?)( (is|are|was|has|have|been))* "
            r"(exhausted|insufficient|not enough|used up|0|zero)\b"
            r"|\b(insufficient|not enough|no|out of|exhausted) .{0,20}\b(magicubes?|balance|credits?|funds)\b"
            r"|(魔粒|魔力值|余额).{0,6}(不足|不够|用完|用尽|耗尽|为 ?0|为零)|欠费"
        ),
        statuses=(402,),
    ),
    Meaning(
        kind=QuotaExhaustedError,
        problem="The daily quota is used up",
        advice="Use another model, or try again tomorrow",
        codes="insufficientquota|.*allocationquota.*",
        words=(
            r"\b(today'?s|daily|day's) .{0,20}quota|quota .{0,60}\b(today|tomorrow|daily|per day)\b"
            r"|^(?!.*\b(rate|rpm|per minute|concurren\w+|disk)\b)"
            r".*(\bexceed.{0,40}\bquota|\bquota\b.{0,20}\b(exceeded|exhausted|used up|reached))"
            r"|(今日|今天|当日|每日).{0,12}(额度|配额|次数|使用量)|(额度|配额).{0,6}(不足|用完|用尽|耗尽|超)"
        ),
    ),
    Meaning(
        kind=AccountNotReadyError,
        problem="The ModelScope account is not ready",
        advice="Bind or verify it at {account_url}, then run the task again",
        words=r"\bbind .{0,30}account|\breal[- ]?name|绑定.{0,12}(阿里云|账号)|实名",
    ),
    Meaning(
        kind=UnknownModelError,
        problem="ModelScope does not serve this model",
        advice="Choose a model that shows API-Inference on its page",
        codes="(unknown|invalid)model|modelnot(found|exist|supported|available)|modeldoesnotexist",
        words=(
            r"has no provider supported"
            r"|(?<!lora )\bmodel( id)?( ?:)? ?\S{0,120} ?,? ?(is |was |does )?"
            r"(not (found|exist|supported|available|served)\b|retired\b)(?! (with|for size)\b)"
            r"|模型.{0,30}(不存在|未找到|不支持|已下线)"
        ),
    ),
    Meaning(
        kind=QueueFullError,
        problem="The queue at ModelScope is full",
        words=r"\bqueue (is |was )?(currently |already )?full\b(?! of)|队列.{0,4}满",
        words_at=_ANY,
    ),
    Meaning(
        kind=RateLimitedError,
        problem="ModelScope is busy",
        words=(
            r"\b(server|system|service)s? (is |are )?(currently |temporarily |too )?(busy|overloaded)\b"
            r"|\bmodel is (currently )?overloaded\b|(服务器?|系统|模型).{0,6}([繁正]忙|过载)"
        ),
        words_at=_ANY,
    ),
    Meaning(
        kind=RateLimitedError,
        problem="ModelScope received too many requests",
        codes="ratelimit.*|throttling.*|(toomany|concurrent)requests.*|requestlimitexceed(ed)?",
        words=(
            r"\brate[- ]?limit|\btoo (many|frequent) .{0,20}(requests|calls)|\bslow down\b"
            r"|\brpm\b|\bper minute\b"
            r"|使用量上限|(请求|调用).{0,6}频繁|频率.{0,6}限|并发.{0,6}(限|超)|限流"
        ),
        statuses=(429,),
    ),
    Meaning(
        kind=AuthenticationError,
        problem="The token lacks a permission",
        advice="Create one that may call API-Inference at {token_url}",
        codes="operationnotallowed|permissiondenied",
        words=r"\b(token .{0,20}permission|permission .{0,20}token)\b",
        words_at=_OF_A_RESPONSE,
    ),
    Meaning(
        kind=AuthenticationError,
        problem="ModelScope rejected the token",
        advice="Check the connection's password against the tokens at {token_url}",
        codes="(invalid|failed)?authentication(failed|error)?|unauth.*|invalid(api|access)?(key|token)",
        words=r"\bauthentication failed\b|\binvalid (authentication|api[- ]?key|access token)\b",
        words_at=_OF_A_RESPONSE,
        statuses=(401, 403),
    ),
    Meaning(
        kind=RequestRejectedError,
        problem="ModelScope rejected the request",
        codes="datainspection.*|inputparameter.*|invalid(parameter|request|input).*|content(policy|filter).*",
        words=(
            r"(?<![\w/-])nsfw(?![\w/-])|\bfiltered\b|\binappropriate content\b"
            r"|\bsensitive (content|words?|information)\b"
            r"|\b(rejected|refused|flagged|blocked|denied) by .{0,40}"
            r"\b(moderation|safety|polic(y|ies)|filters?)\b"
            r"|\b(content (moderation|review|policy|filters?)|safety (checker|filters?|system))\b"
            r"(?!.{0,40}\b(unavailable|timed?[ -]?out|unreachable|failed to|error|out of memory)\b)"
            r"|\binvalid parameter|敏感|违规|违禁|色情|不合规|(未|不|没有)通过.{0,6}(审核|审查)"
            r"|(审核|审查)(?!.{0,6}(服务|接口|调用|超时)).{0,6}(未通过|不通过|失败|拒绝)"
            r"|参数.{0,6}(错误|无效|非法|不合法|有误)"
        ),
        statuses=[status for status in range(400, 500) if status != 408],
    ),
)


# What may stand before "queue" or "server" at the start of a message.
_START = r"([\w .-]{1,40}: ?)*(code ?= ?\w+ desc ?= ?)?((the|our|user|image|task) )*[\u4e00-\u9fff，]{0,6}?"
# A text in quotes, up to the end of the message if it was cut off, and what follows "prompt=". Apostrophes
# are no quotes.
_QUOTED = re.compile(
    r"""(?<!\w)'.*?(?:'(?!\w)|$)|".*?(?:"|$)|“.*?(?:”|$)|‘.*?(?:’|$)|「.*?(?:」|$)|`.*?(?:`|$)|prompt ?=.*"""
)
_SHORTEST_ECHO = 8  # characters: a shorter prompt, such as "busy", may be the service's own word


def meaning_of(status: int, message: str, *, echoes: Iterable[str] = ()) -> Meaning:
    """Return what an error means.

    :param status: The HTTP status, or the numeric code that takes its place.
    :param message: The message in any spelling; a textual code stands alone, or before a colon.
    :param echoes: The texts of the request. Where the message repeats them, they mean nothing.
    """
    words = _without_echoes(_plain(message), echoes)
    codes = [re.sub("[^a-z]", "", code) for code in re.findall(r"(?:^|: ?)[\w.-]+(?=:)|^[\w.-]+$", words)]
    by_code = (row for code in codes for row in MEANINGS if code and re.fullmatch(row.codes, code))
    start = f"^{_START}" if status >= 500 else ""
    by_words = (
        row
        for row in MEANINGS
        if row.words and status in row.words_at and re.search(f"{start}(?:{row.words})", words)
    )
    by_status = (row for row in MEANINGS if status in row.statuses)
    return next(chain(by_code, by_words, by_status, [UNAVAILABLE]))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'").split())


def _without_echoes(message: str, echoes: Iterable[str]) -> str:
    for echo in filter(None, echoes):
        for spelled in (echo, *(json.dumps(echo, ensure_ascii=ascii_)[1:-1] for ascii_ in (False, True))):
            if len(plain := _plain(spelled)) >= _SHORTEST_ECHO:
                message = message.replace(plain, "")
    return message if message[:1] in ("{", "[") else _QUOTED.sub("", message)  # JSON quotes all its texts


def status_of(code: int | None, *, default: int) -> int:
    """Return the HTTP status that a numeric code in a body stands for; codes such as 40301 are a 400."""
    if code is not None and (400 <= code < 600 or 40000 <= code < 60000):
        return code if code < 600 else code // 10000 * 100
    return default
