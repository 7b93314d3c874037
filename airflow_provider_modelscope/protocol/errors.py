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
    CreditExhaustedError,
    ModelRetiredError,
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
        the start of a clause only.
    :param words_at: The statuses at which the words count. After most 5xx something may have been created.
    :param statuses: The statuses that mean this if neither code nor words are known.
    :param examples: Messages that mean this, a textual code before a colon.
    :param not_examples: Messages with similar words that mean something else.
    """

    kind: type[ModelScopeError]
    problem: str
    advice: str = ""
    codes: str = ""
    words: str = ""
    words_at: Container[int] = range(500)
    statuses: Container[int] = ()
    examples: tuple[str, ...] = ()
    not_examples: tuple[str, ...] = ()

    @property
    def is_final(self) -> bool:
        """Whether the same request would fail again."""
        return issubclass(self.kind, ModelScopeFinalError)


UNAVAILABLE = Meaning(
    kind=ServiceUnavailableError,
    problem="ModelScope is unavailable",
    words=r"^(internal|system|server)[ _]?error|^service ?unavailable",
    words_at=range(401),
)
REFUSED = Meaning(
    kind=RequestRejectedError,
    problem="A proxy or firewall, or ModelScope, refused the request to {base_url}",
    advice="Check the egress rules, the connection's proxy, and what the token may do: {token_url}",
    statuses=(403, 407),
)

# The first row that matches counts. Words are those of the service or of sister services, in both languages.
# What a message merely repeats is removed before they are searched.
MEANINGS = (
    Meaning(
        kind=ModelRetiredError,
        problem="No credit, or the model is no longer served",
        advice="The balance at {credit_url} decides: if there is credit, use another model",
        words=r"balance ?\(1008\)",
        examples=("insufficient balance (1008)",),
    ),
    Meaning(
        kind=CreditExhaustedError,
        problem="The account's credit is used up",
        advice="Get credit at {credit_url}: it is granted to a person who visits the site while logged in",
        codes="quotalimitexceed(ed)?|arrearage",
        words=(
            r"(?<!load )\b(magicubes?|balance|credits?)( (is|are|was|has|have|been))* "
            r"(exhausted|insufficient|not enough|used up|0|zero)\b"
            r"|\b(insufficient|not enough|no|out of|exhausted) .{0,20}\b(magicubes?|balance|credits?|funds)\b"
            r"|(魔粒|魔力值|余额).{0,6}(不足|不够|用完|用尽|耗尽|为 ?0|为零)|欠费"
        ),
        statuses=(402,),
        examples=("QuotaLimitExceed: no", "magicube balance exhausted", "魔粒余额不足", "Your balance is 0"),
        not_examples=("color balance must be greater than 0", "no healthy upstream; load balance exhausted"),
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
        examples=("You have exceeded today's quota for model X, try again tomorrow", "今日额度已用完"),
        not_examples=("quota exceeded: 20 requests per minute", "disk quota exceeded"),
    ),
    Meaning(
        kind=AccountNotReadyError,
        problem="The ModelScope account is not ready",
        advice="Bind or verify it at {account_url}, then run the task again",
        words=r"\bbind .{0,30}account|\breal[- ]?name|绑定.{0,12}(阿里云|账号)|实名",
        examples=("Please bind your Alibaba Cloud account before use.", "请先绑定阿里云账号"),
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
        examples=("Model id : Qwen/Qwen-Image , has no provider supported", "模型不存在"),
        not_examples=("lora model foo/bar not found", "model X is not supported with size 4096x4096"),
    ),
    Meaning(
        kind=QueueFullError,
        problem="The queue at ModelScope is full",
        words=r"\bqueue (of (\w+ ){1,3})?(is |was )?(currently |already )?full\b(?! of)|队列.{0,4}满",
        words_at=_ANY,
        examples=("enqueue failed: user queue is full", "the queue of user 123 is full", "队列已满"),
        not_examples=("not allowed: a queue full of people",),
    ),
    Meaning(
        kind=RateLimitedError,
        problem="ModelScope is busy",
        words=(
            r"\b(server|system|service)s? (is |are )?(currently |temporarily |too )?(busy|overloaded)\b"
            r"|\bmodel is (currently )?overloaded\b|(服务器?|系统|模型).{0,6}([繁正]忙|过载)"
        ),
        words_at=_ANY,
        examples=("Sorry, server is busy", "Internal Error: Server is busy", "模型使用人数较多，服务繁忙"),
    ),
    Meaning(
        kind=RateLimitedError,
        problem="ModelScope received too many requests",
        codes="ratelimit.*|throttling.*|(toomany|concurrent)requests.*|requestlimitexceed(ed)?",
        words=(
            r"\brate[- ]?limit|\btoo (many|frequent) .{0,20}(requests|calls)|\bslow down\b"
            r"|\brpm\b|\bper minute\b|\bflow control\b|\bthrottl(ed|ing)\b"
            r"|使用量上限|(请求|调用).{0,6}频繁|频率.{0,6}限|并发.{0,6}(限|超)|限流|流控"
        ),
        statuses=(429,),
        examples=("RateLimitExceed: no", "Throttled by USER Flow Control", "请求过于频繁"),
    ),
    Meaning(
        kind=AuthenticationError,
        problem="The token lacks a permission",
        advice="Create one that may call API-Inference at {token_url}",
        codes="operationnotallowed|permissiondenied",
        words=r"\b(token .{0,20}permission|permission .{0,20}token)\b",
        words_at=_OF_A_RESPONSE,
        examples=("OperationNotAllowed: no", "insufficient token permission"),
    ),
    Meaning(
        kind=AuthenticationError,
        problem="ModelScope rejected the token",
        advice="Check the connection's password against the tokens at {token_url}",
        codes="(invalid|failed)?authentication(failed|error)?|unauth.*|invalid(api|access)?(key|token)",
        words=r"\bauthentication failed\b|\binvalid (authentication|api[- ]?key|access token)\b",
        words_at=_OF_A_RESPONSE,
        statuses=(401,),
        examples=("InvalidAuthentication: no", "Authentication failed"),
        not_examples=("Invalid token in the prompt",),
    ),
    REFUSED,
    Meaning(
        kind=RequestRejectedError,
        problem="ModelScope rejected the request",
        codes="datainspection.*|inputparameter.*|invalid(parameter|request|input).*|content(policy|filter).*"
        "|moderation(blocked|failed|rejected)",
        words=(
            r"(?<![\w/-])nsfw(?![\w/-])|\bfiltered\b|\b(inappropriate|unsafe) content\b"
            r"|\bsensitive (content|words?|information)\b|\bviolat\w* .{0,40}\bpolic|\bpolicy violation"
            r"|\b(rejected|refused|flagged|blocked|denied) by .{0,40}\b(moderation|safety|polic|filter)"
            r"|\b(content (moderation|review|policy|filter)|safety (checker|filter|system))s?\b(?!.{0,40}\b("
            r"service|unavailable|timed?[ -]?out|unreachable|failed to|error|returned|connection|memory)\b)"
            r"|\binvalid parameter|敏感|违规|违禁|色情|不合规|(未|不|没有)通过.{0,8}(审核|审查|检测)"
            r"|(审核|审查)(?!.{0,6}(服务|接口|调用|超时)).{0,6}(未通过|不通过|失败|拒绝)|检测.{0,6}[未不]通过"
            r"|参数.{0,6}(错误|无效|非法|不合法|有误)"
        ),
        statuses=[status for status in range(400, 500) if status != 408],
        examples=("DataInspectionFailed: no", "prompt rejected by moderation", "内容安全检测未通过"),
        not_examples=("content moderation service timeout", "内容审核服务调用失败", "A/NSFW-gen-v2 crashed"),
    ),
    UNAVAILABLE,
)  # fmt: skip


# What may stand before "queue" or "server" in a message: whole clauses, and a few words.
_START = r"(?:[^][().:,;!=]{0,40}[][().:,;!=])* ?((the|our|user|image|task) )*[\u4e00-\u9fff]{0,6}?"
# A text in quotes, up to the end of the message if it was cut off, and what follows "prompt=". Apostrophes
# are no quotes.
_QUOTED = re.compile(
    r"""(?<!\w)'.*?(?:'(?!\w)|$)|".*?(?:"|$)|“.*?(?:”|$)|‘.*?(?:’|$)|「.*?(?:」|$)|`.*?(?:`|$)|prompt ?=.*"""
)
_SHORTEST_ECHO = 8  # characters: a shorter prompt, such as "busy", may be the service's own word
_SHORTEST_CUT_ECHO = 24  # characters: the beginning of a prompt that the service cut off


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
            if len(plain) > _SHORTEST_CUT_ECHO:
                message = message.partition(plain[:_SHORTEST_CUT_ECHO])[0]
    return message if message[:1] in ("{", "[") else _QUOTED.sub("", message)  # JSON quotes all its texts


def status_of(code: int | None, *, default: int) -> int:
    """Return the HTTP status that a numeric code in a body stands for; codes such as 40301 are a 400."""
    if code is not None and (400 <= code < 600 or 40000 <= code < 60000):
        return code if code < 600 else code // 10000 * 100
    return default
