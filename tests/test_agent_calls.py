"""Tool calls as the common chat templates write them, and as models get them wrong."""

import pytest

from octavo.agent.calls import check_arguments, read_calls
from octavo.expand import TOOL, ask_for, in_full, ranges, read_numbers


def calls(said: str) -> list[tuple[str, object]]:
    found = read_calls(said).calls
    assert not [call.problem for call in found if call.problem]
    return [(call.name, dict(call.arguments)) for call in found]


EXPAND = ("expand", {"ids": ["3", "7-9"]})


@pytest.mark.parametrize(
    "said",
    [
        '<tool_call>\n{"name": "expand", "arguments": {"ids": ["3", "7-9"]}}\n</tool_call>',
        'Let me see.<tool_call>{"name":"expand","arguments":{"ids":["3","7-9"]}}</tool_call> so',
        '<tool_call>{"name": "expand", "arguments": {"ids": ["3", "7-9"]}}',  # cut off at the end
        "<tool_call>\n<function=expand>\n<parameter=ids>\n"
        '["3", "7-9"]\n</parameter>\n</function>\n</tool_call>',
        '<|python_tag|>{"name": "expand", "parameters": {"ids": ["3", "7-9"]}}<|eom_id|>',
        '{"name": "expand", "parameters": {"ids": ["3", "7-9"]}}',
        '[TOOL_CALLS][{"name": "expand", "arguments": {"ids": ["3", "7-9"]}}]',
        '[TOOL_CALLS]expand[ARGS]{"ids": ["3", "7-9"]}',
        '[TOOL_CALLS]expand[CALL_ID]a1b2c3d4e[ARGS]{"ids": ["3", "7-9"]} and more',
        '{"name": "expand", "parameters": {"ids": ["3", "7-9"]}} and then some prose',
        'CALL expand {"ids": ["3", "7-9"]}',
        '<think>EXPAND: 1</think>\n<tool_call>{"name": "expand", "arguments": '
        '{"ids": ["3", "7-9"]}}</tool_call>',
    ],
)
def test_every_common_form_is_read(said: str) -> None:
    assert calls(said) == [EXPAND]


def test_parallel_calls_stay_apart() -> None:
    one = '<tool_call>{"name": "a", "arguments": {"x": 1}}</tool_call>'
    assert calls(one + one.replace("1", "2")) == [("a", {"x": 1}), ("a", {"x": 2})]
    assert calls("[TOOL_CALLS]a[ARGS]{}[TOOL_CALLS]b[ARGS]{}") == [("a", {}), ("b", {})]
    two = '<|python_tag|>{"name": "a", "parameters": {"x": "};{"}}; {"name": "b", "parameters": {}}'
    assert calls(two) == [("a", {"x": "};{"}), ("b", {})]
    assert calls("EXPAND: 1\nexpand: 4-5") == [
        ("expand", {"ids": " 1"}),
        ("expand", {"ids": " 4-5"}),
    ]


@pytest.mark.parametrize(
    "said",
    [
        "Paris.",
        "To read more one would EXPAND: 3, the manual says.",
        '{"name": "Ines", "age": 41}',
        "<think>I should <tool_call>expand</tool_call> or EXPAND: 3",
        "</tool_call>",
        "",
    ],
)
def test_prose_is_no_call(said: str) -> None:
    assert read_calls(said).calls == ()


def test_thoughts_are_no_part_of_an_answer() -> None:
    assert read_calls("<think>hm</think>Paris.<think>or not?</think>").text == "Paris."
    assert read_calls("hm, well</think>Paris.").text == "Paris."
    assert read_calls("Paris.<think>but").text == "Paris."


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ('<tool_call>{"name": "a", "arguments": {"x": NaN}}</tool_call>', "NaN is no JSON"),
        ('<tool_call>{"name": "a", "arguments": {"x": 1, "x": 2}}</tool_call>', "given twice"),
        ('<tool_call>{"name": "a", "arguments": [1]}</tool_call>', "no object"),
        ("<tool_call>expand 3</tool_call>", "not JSON"),
        ('<tool_call>{"name": 3}</tool_call>', "a call is"),
        ("<tool_call><function=></tool_call>", "no name"),
        ("<tool_call><function=a><parameter=x>1</tool_call>", "does not end"),
        ('CALL a {"x": ', "not JSON"),
        ("<tool_call>" + "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_fault_is_named_and_nothing_is_repaired(said: str, problem: str) -> None:
    (call,) = read_calls(said).calls
    assert problem in (call.problem or "")


def test_a_flood_of_tags_is_read_in_one_pass() -> None:
    assert len(read_calls("<tool_call>" * 20_000).calls) == 16
    assert read_calls("<think>" * 20_000 + "</think>").text == ""
    assert len(read_calls("EXPAND: 1\n" * 20_000).calls) == 16


def test_arguments_are_checked_against_the_schema() -> None:
    schema = TOOL["function"]["parameters"]
    assert check_arguments({"ids": ["3"]}, schema) is None
    assert "missing" in str(check_arguments({}, schema))
    assert "no argument 'x'" in str(check_arguments({"ids": ["3"], "x": 1}, schema))
    assert "is str, expected array" in str(check_arguments({"ids": "3"}, schema))
    numbers = {"properties": {"n": {"type": "integer"}}}
    assert "is bool" in str(check_arguments({"n": True}, numbers))
    assert check_arguments({"n": 3}, numbers) is None


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        (" 3, 7-9", [3, 7, 8, 9]),
        (["3", "7-9", 3], [3, 7, 8, 9]),
        ([2, "1"], [2, 1]),
        ("[3]; [4]", [3, 4]),
        (5, [5]),
    ],
)
def test_numbers_and_ranges_are_read(asked: object, numbers: list[int]) -> None:
    assert read_numbers(asked, 9) == (numbers, [])


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ("99", "parts are 1 to 9"),
        ("0", "parts are 1 to 9"),
        ("4-2", "parts are 1 to 9"),
        ("1-99999999999", "is no part"),
        ("all", "is no part"),
        ("²", "is no part"),
        ("", "no part was named"),
        ([True], "is no part"),
        ([{"id": 3}], "is no part"),
    ],
)
def test_a_wrong_number_is_named_with_the_right_ones(asked: object, problem: str) -> None:
    found, problems = read_numbers(asked, 9)
    assert found == []
    assert problem in problems[0]


def test_good_numbers_count_beside_bad_ones() -> None:
    assert read_numbers("3, 99, x", 9)[0] == [3]
    assert len(read_numbers("3, 99, x", 9)[1]) == 2


def test_what_is_asked_for_reads_back() -> None:
    assert ranges([9, 3, 7, 8, 8]) == "3, 7-9"
    (call,) = read_calls(ask_for([3, 7, 8, 9])).calls
    assert read_numbers(call.arguments["ids"], 9) == ([3, 7, 8, 9], [])
    assert in_full([(3, " a "), (4, "b\n")]) == "[3] a\n[4] b"
