"""Texts that share a run of words, in scripts with and without spaces between words."""

from __future__ import annotations

import pytest

from logitstore.contamination.ngrams import NgramTexts
from logitstore.contamination.prompt_texts import words_of

CHINESE = "小明有五个苹果，吃了两个，又买了三个，请问他现在一共有几个苹果？"
JAPANESE = "りんごが五つあり、二つ食べて三つ買いました。いまいくつありますか。"


INSTRUCTION = "निम्नलिखित प्रश्न का उत्तर दीजिए"
HINDI = "भारत की राजधानी क्या है और वहाँ की जनसंख्या कितनी है?"
THAI = "ปู่มีแอปเปิ้ลสิบห้าผลกินไปสี่ผลแล้วซื้อเพิ่มอีกเจ็ดผลตอนนี้ปู่มีแอปเปิ้ลทั้งหมดกี่ผล"


def is_met(kept: str, text: str) -> bool:
    texts = NgramTexts(13)
    texts.start_block([kept])
    texts.keep(0, 0)
    texts.start_block([text])
    return texts.nearest(0) is not None


@pytest.mark.parametrize(
    ("kept", "text", "met"),
    [
        ("What is the capital of France?", "Answer briefly: what is the capital of France", True),
        ("What is the capital of France?", "What is the capital of Germany?", False),
        ("法国的首都是哪里？", "请回答：法国的首都是哪里？", True),
        ("法国的首都是哪里？", "德国的首都是哪里？", False),
        ("你好吗", "请问你好吗", False),
        ("你好吗", "你好吗？", True),
        (CHINESE, f"题目：{CHINESE[:17]}答案是什么", True),
        (CHINESE, "小红有四根香蕉，吃了一根，还剩多少根香蕉？", False),
        (JAPANESE, f"次の問いに答えなさい。{JAPANESE[4:22]}", True),
        (JAPANESE, "みかんが三つあります。一つ食べました。のこりはいくつでしょうか。", False),
        ("コンピュータ プログラミング", "コンピュータとプログラミング", False),
        (f"{INSTRUCTION}: {HINDI}", f"{INSTRUCTION}: सबसे बड़ा ग्रह कौन सा है?", False),
        (HINDI, f"{INSTRUCTION}: {HINDI}", True),
        (HINDI, HINDI.replace("की", "का"), False),
        (THAI, f"โจทย์คือ{THAI}ตอบด้วย", True),
    ],
)
def test_a_run_of_words_is_met_whatever_the_script(kept: str, text: str, met: bool) -> None:
    """Whole sentences of Chinese and Japanese were one word, and met by an equal text alone; words of Hindi were
    cut at each vowel sign, so that five of them were the thirteen that two texts may not share."""
    assert is_met(kept, text) is met


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I \u2764\ufe0f you", ["i", "you"]),
        ("\u2615\ufe0f\u2615\ufe0f", []),
        ("1\ufe0f\u20e3 apple", ["1", "apple"]),
        ("\u0301 e\u0301a \u0915\u0940", ["\u00e9a", "\u0915\u0940"]),
    ],
)
def test_signs_of_an_emoji_are_no_words(text: str, words: list[str]) -> None:
    """The variation selector behind most of them was a word, and hid a run of thirteen others."""
    assert words_of(text) == words
