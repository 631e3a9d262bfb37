"""Names of classes: what is taken, what is refused, and that every answer says them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from nets import Plain, image, seeded

import corgi_opt as co
from corgi_opt.network.names import checked_names, in_words, index_of, name_of, require_one_each

X = image(1, 6, 6)


def built(*names: str) -> co.CamNetwork:
    return co.from_torch(seeded(Plain, 2), X, classes=names or None)


def test_names_are_kept_in_the_order_of_the_scores():
    net = co.from_torch(seeded(Plain, 2), X)
    assert net.class_names == () and checked_names(None) == ()
    names = [f"sign {i}" for i in range(net.classes)]
    named = built(*names)
    assert named.class_names == tuple(names)
    assert named.to(torch.float32).class_names == tuple(names)
    for at, name in enumerate(names):
        assert named.class_index(X, name) == at == named.class_index(X, at)
        assert torch.equal(named.cam(X, name), named.cam(X, at))


@pytest.mark.parametrize("classes", ["stop", [], [1, 2], ["stop", " "], {"stop", "yield"}, 3, b"ab"])
def test_what_is_no_list_of_names_is_refused_before_any_work(classes):
    refused: Any = classes
    with pytest.raises(co.InputError, match="classes must be a list of names"):
        co.from_torch(torch.nn.Identity(), torch.zeros(0), classes=refused)
    with pytest.raises(co.InputError, match="classes must be a list of names"):
        co.from_onnx("no such file", classes=refused)
    with pytest.raises(co.InputError, match="classes must be a list of names"):
        co.from_keras("no such file", classes=refused)


def test_there_is_one_name_for_each_score():
    with pytest.raises(co.InputError, match=r"has 2 names, but the network has \d+ class scores"):
        built("stop", "yield")
    require_one_each((), 5)


def test_an_unknown_name_is_refused_with_those_that_are_near():
    with pytest.raises(co.InputError, match=r"no class 'sotp'; there are 'stop', \.\.\."):
        index_of("sotp", ("stop", "ahead only", "yield"))
    with pytest.raises(co.InputError, match=r"there are 'a', 'b'$"):
        index_of("zzz", ("a", "b"))


def test_a_name_of_several_classes_is_refused_with_their_numbers():
    with pytest.raises(co.InputError, match="name of classes 0, 2: pass the number"):
        index_of("crane", ("crane", "dog", "crane"))


def test_without_names_the_message_says_how_to_give_them():
    with pytest.raises(co.InputError, match=r"build it with classes=\[\.\.\.\]"):
        co.verify(co.from_torch(seeded(Plain, 2), X), X, eps=0.01, k=2, class_idx="stop")
    net = built(*(f"c{i}" for i in range(co.from_torch(seeded(Plain, 2), X).classes)))
    assert co.verify(net, X, eps=0.0, k=2, class_idx="c1").asked.class_idx == 1  # as the message says


def test_words_have_a_name_where_there_is_one():
    assert (in_words(7, None), in_words(7, "stop")) == ("7", "7 (stop)")
    assert name_of(1, ("a", "b")) == "b" and name_of(1, ("a",)) is None and name_of(0, ()) is None


def test_answers_say_the_name_and_keep_it_through_json():
    names = [f"sign {i}" for i in range(co.from_torch(seeded(Plain, 2), X).classes)]
    net = built(*names)
    v = co.verify(net, X, eps=0.3, k=4, class_idx="sign 1", keep_class=True)
    kept = v.asked.kept
    assert kept is not None
    said = f"class 1 (sign 1), keeping class {kept} (sign {kept})"
    assert said in v.asked.short and said in repr(v) and "class 1 (sign 1)" in v._repr_html_()
    back = co.Verdict.from_dict(json.loads(json.dumps(v.to_dict(), allow_nan=False)))
    assert back.asked == v.asked and back.asked.class_name == "sign 1"
    assert "class 1 (sign 1)" in v.asked.in_words
    other = co.from_torch(seeded(Plain, 4), X, classes=names)
    broken = co.attack(other, X, eps=5.0, property=co.KeepsClass(), clip=None)
    assert broken is not None
    first, second = broken.pair
    assert broken.what_changed == f"class {second} (sign {second}) passes class {first} (sign {first})"
    both: Any = ["sign 0", "sign 1"]
    several: Any = co.verify(net, X, eps=0.001, k=2, class_idx=both)
    assert [one.asked.class_idx for one in several] == [0, 1]
