import numpy as np
import pytest

from trainer import names

CARS = ["Audi TTS Coupe 2012", "Audi TT RS Coupe 2012", "Ram C/V Van 2012", "BMW X3 SUV 2012"]


def test_words_in_several_names_but_not_in_all_are_shared():
    np.testing.assert_array_equal(
        names.shared_words(CARS),
        # audi, coupe; 2012 is in all, tts, tt, rs, ram, c, v, van, bmw, x3, suv in one each
        [[1, 1], [1, 1], [0, 0], [0, 0]],
    )


def test_case_is_no_obstacle_and_repetition_counts_once():
    table = names.shared_words(["CITROËN 2cv 2cv", "Citroën DS", "Peugeot 2CV"])
    np.testing.assert_array_equal(table, [[1, 1], [0, 1], [1, 0]])


@pytest.mark.parametrize("class_names", [["", ""], ["a", "b", "c"], ["same words", "words same"]])
def test_names_that_share_nothing_make_a_dense_layer(class_names):
    layer = names.NameLogits(class_names)
    features = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    logits = layer(features)
    assert [weight.name for weight in layer.weights] == ["kernel", "bias"]
    expected = features @ layer.kernel.numpy() + layer.bias.numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_a_class_is_judged_by_its_own_weights_and_those_of_its_words():
    layer = names.NameLogits(CARS)
    features = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    layer(features)
    random = np.random.default_rng(1)
    layer.set_weights([random.normal(size=weight.shape) for weight in layer.weights])
    kernel, shared, bias = layer.get_weights()
    for number, words in enumerate(names.shared_words(CARS)):
        whole = kernel[:, number] + sum(
            shared[:, word] for word in range(len(words)) if words[word]
        )
        expected = features @ whole + bias[number]
        np.testing.assert_allclose(layer(features)[:, number], expected, rtol=1e-4)
