"""Our model against numbers of the official one. All fp32 bounds are the golden README's 1e-5."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from gvcot.chain import Chain
from gvcot.context import Context
from gvcot.model import flow
from gvcot.model.attention import rope_tables, visibility
from gvcot.model.embeddings import time_features
from gvcot.model.layout import table_rows
from gvcot.model.sequence import Segment, pack
from gvcot.model.siglip import patch_pixels
from gvcot.types import ChainConfig, Condition, GuidanceConfig

TOL = 1e-5
NOISE_CASES = [
    "gvcot_full",
    "gvcot_vae_only",
    "gvcot_nonsquare",
    "packed_pair",
    "direct_edit",
    "think_edit",
    "gvcot_drop_text",
    "gvcot_drop_source",
    "gvcot_drop_r",
]


@pytest.mark.parametrize("name", NOISE_CASES)
def test_velocity(name, golden_case, golden_model, rel):
    case = golden_case(name)
    packed = pack(case.samples, golden_model.config)
    assert rel(packed.latent_GD[packed.noise_rows_M], case.joined("x_t")) < TOL
    assert rel(golden_model(packed).velocity_MD, case.joined("velocity")) < TOL


@pytest.mark.parametrize("name", [*NOISE_CASES, "understanding"])
def test_layout(name, golden_case, golden_model):
    case = golden_case(name)
    config = golden_model.config
    packed = pack(case.samples, config)
    visible_BLL = visibility(packed)
    start = 0
    for sample, length in enumerate(packed.sample_lens):
        rows = slice(start, start + length)
        layout = f"out.s{sample}.layout"
        assert torch.equal(packed.position_ids_L[rows], case[f"{layout}.position_ids"])
        assert torch.equal(packed.token_kind_L[rows], case[f"{layout}.token_kind"])
        assert torch.equal(packed.token_ids_L[rows], case[f"{layout}.token_ids"])
        assert torch.equal(packed.segment_L[rows], case[f"{layout}.segment"])
        assert torch.equal(visible_BLL[sample, :length, :length], case[f"{layout}.attention_mask"])
        start += length
    assert start == len(packed.position_ids_L)

    def flat(field):
        return torch.cat([case[f"out.s{s}.layout.{field}"] for s in range(len(case.samples))])

    latent_ids_L = torch.full((start,), -1).index_copy(0, packed.gen_idx, packed.latent_rows_G)
    assert torch.equal(latent_ids_L, flat("latent_position_ids"))
    vit_ids_L = torch.full((start,), -1)
    for rows_IN, table_rows_N in zip(packed.vit_rows, packed.vit_table_rows, strict=True):
        vit_ids_L[packed.und_idx[rows_IN]] = table_rows_N
    assert torch.equal(vit_ids_L, flat("vit_position_ids"))
    loss_mask_L = torch.zeros(start, dtype=torch.bool)
    loss_mask_L[packed.gen_idx[packed.noise_rows_M]] = True
    assert torch.equal(loss_mask_L, flat("loss_mask"))


def test_hidden_states(golden_case, golden_model, rel):
    case = golden_case("gvcot_full")
    packed = pack(case.samples, golden_model.config)
    streams = {}
    backbone = golden_model.language_model.model

    def keep_input(module, args):
        streams["input"] = args[:2]

    def keep(name):
        def hook(module, args, output):
            streams[name] = output

        return hook

    handles = [backbone.layers[0].register_forward_pre_hook(keep_input)]
    handles += [layer.register_forward_hook(keep(f"layer{i}")) for i, layer in enumerate(backbone.layers)]
    handles.append(backbone.norm_moe_gen.register_forward_hook(keep("final")))
    golden_model(packed)
    for handle in handles:
        handle.remove()

    for name in ("input", "layer0"):
        expected = case[f"out.s0.hidden.{name}"]
        assert rel(streams[name][0], expected[packed.und_idx]) < TOL
        assert rel(streams[name][1], expected[packed.gen_idx]) < TOL
    # The last layer computes only the rows that are read.
    noisy = packed.gen_idx[packed.noise_rows_M]
    assert rel(streams["layer1"][1], case["out.s0.hidden.layer1"][noisy]) < TOL
    assert rel(streams["final"], case["out.s0.hidden.final"][noisy]) < TOL


def test_gradients(golden_case, golden_model, rel):
    case, grads = golden_case("gvcot_full"), golden_case("gvcot_full_grads")
    packed = pack(case.samples, golden_model.config)
    golden_model.zero_grad()
    square_M = (golden_model(packed).velocity_MD - case.joined("target")).square().mean(dim=1)
    loss = square_M.mean()
    loss.backward()
    assert loss.item() == pytest.approx(grads["out.loss"].item(), rel=TOL)
    per_segment = torch.stack([square_M[rows].mean() for rows in packed.noise_slices[0]])
    assert rel(per_segment, grads["out.loss_per_segment"]) < TOL

    parameters = dict(golden_model.named_parameters())
    norms = {k.removeprefix("out.grad_norm."): v for k, v in grads.tensors.items() if "grad_norm." in k}
    assert len(norms) == 108
    for name, expected in norms.items():
        grad = parameters[name].grad
        norm = 0.0 if grad is None else grad.norm().item()
        assert norm == pytest.approx(expected.item(), rel=TOL, abs=1e-6), name
    full = {k.removeprefix("out.grad."): v for k, v in grads.tensors.items() if k.startswith("out.grad.")}
    for name, expected in full.items():
        assert rel(parameters[name].grad, expected) < TOL, name
    assert parameters["language_model.lm_head.weight"].grad is None
    golden_model.zero_grad()


def test_understanding_logits_and_greedy_continuation(golden_case, golden_model, rel):
    case = golden_case("understanding")
    vit, text = case.samples[0]
    with_loss = Segment.text(text.data, loss=True)
    prediction = golden_model(pack([[vit, with_loss]], golden_model.config))
    expected = case["out.s0.01_text.logits"]
    assert rel(prediction.text_logits, expected[:-1]) < TOL
    assert prediction.text_targets.tolist() == [*text.data.tolist(), golden_model.config.token_ids.eos]

    cache = golden_model.new_cache(1)
    golden_model.prefill(cache, [vit])
    assert rel(golden_model.prefill(cache, [text]), expected[-1:]) < TOL
    token, ids, logits = golden_model.config.token_ids.bos, [], []
    for _ in range(8):
        logits.append(golden_model.prefill(cache, [Segment.text(torch.tensor([token]), bare=True)]))
        token = logits[-1].argmax().item()
        ids.append(token)
    assert ids == case["out.greedy.ids"].tolist()
    assert rel(torch.cat(logits), case["out.greedy.logits"]) < TOL


def test_parts(golden_case, golden_model, rel):
    case = golden_case("parts")
    config = golden_model.config
    assert rel(time_features(case["in.t"]), case["out.time_features"]) < TOL
    assert rel(golden_model.time_embedder(case["in.t"]), case["out.time_embedding"]) < TOL
    latent = case["in.latent"]
    tokens_1ND = flow.patchify(latent[None], 2)
    assert torch.equal(tokens_1ND[0], case["out.latent_tokens"])
    assert torch.equal(flow.unpatchify(tokens_1ND, (3, 5), 2)[0], latent)
    rows = torch.from_numpy(table_rows((3, 5), config.max_latent))
    assert torch.equal(rows, case["out.latent_position_ids"])
    assert torch.equal(patch_pixels(case["in.pixels"][None], 14)[0], case["out.pixel_patches"])
    assert torch.equal(torch.from_numpy(table_rows((2, 3), 10)), case["out.vit_position_ids"])
    cos, sin = rope_tables(case["in.rope_ids"][:, None], config.llm.head_dim, config.llm.rope_theta)
    assert rel(cos, case["out.rope_cos"]) < TOL
    assert rel(sin, case["out.rope_sin"]) < TOL
    for shift in (1.0, 3.0):
        t = flow.shift_time(torch.sigmoid(case["in.time_logit"]), shift)
        assert rel(t, case[f"out.train_t.shift_{shift:.0f}"]) < TOL
    for num, shift in ((24, 1.0), (50, 3.0), (6, 3.0)):
        assert rel(flow.sigma_schedule(num - 1, shift), case[f"out.sigmas.n{num}_shift_{shift:.0f}"]) < TOL


def test_siglip(golden_case, golden_model, rel):
    case = golden_case("siglip")
    for index in (0, 1):
        pixels = case[f"in.image{index}.pixels"]
        rows = torch.from_numpy(table_rows((pixels.shape[1] // 14, pixels.shape[2] // 14), 10))
        assert torch.equal(rows, case[f"out.image{index}.position_ids"])
        features = golden_model.vit_model(pixels[None], rows)
        assert rel(features[0], case[f"out.image{index}.features"]) < TOL
        tokens = golden_model.connector(features[0]) + golden_model.vit_pos_embed(rows)
        assert rel(tokens, case[f"out.image{index}.llm_tokens"]) < TOL


def test_position_tables_are_reproduced(golden_model, rel):
    fresh = type(golden_model)(golden_model.config)
    for name in ("latent_pos_embed", "vit_pos_embed"):
        ours = fresh.get_submodule(name).pos_embed
        assert rel(ours, golden_model.get_submodule(name).pos_embed) < TOL


def _branches(case, model):
    vae, vit, text = case.samples[0]
    caches = []
    for segments in ([vae, vit, text], [vae, vit], [text]):
        cache = model.new_cache(1)
        for segment in segments:
            model.prefill(cache, [segment])
        caches.append(cache)
    return caches


@torch.no_grad()
def test_cfg(golden_case, golden_model, rel):
    case = golden_case("cfg")
    caches = _branches(case, golden_model)
    x = case["in.x_t"][None]
    interval = tuple(case["in.cfg_interval"].tolist())
    for when in ("active", "inactive"):
        t = case[f"in.t_{when}"]
        full, no_text, no_image = (golden_model.velocity(cache, x, t[None], (3, 4)) for cache in caches)
        out = f"out.{when}"
        assert rel(full[0], case[f"{out}.v_full"]) < TOL
        assert rel(no_text[0], case[f"{out}.v_no_text"]) < TOL
        assert rel(no_image[0], case[f"{out}.v_no_image"]) < TOL
        assert flow.cfg_active(t[None], interval).item() == (when == "active")
        for renorm in ("global", "channel", "text_channel") if when == "active" else ():
            scales = {"text_scale": case["in.text_scale"].item(), "renorm": renorm}
            image_scale, low = case["in.image_scale"].item(), case["in.renorm_min"].item()
            final = flow.cfg_combine(
                full, no_text, no_image, image_scale=image_scale, renorm_min=low, **scales
            )
            assert rel(final[0], case[f"{out}.final.{renorm}"]) < TOL
            final = flow.cfg_combine(full, no_text, None, renorm_min=low, **scales)
            assert rel(final[0], case[f"{out}.final_image_scale_1.{renorm}"]) < TOL
            final = flow.cfg_combine(
                full, no_text, no_image, image_scale=image_scale, renorm_min=0.6, **scales
            )
            assert rel(final[0], case[f"{out}.final_renorm_min_0.6.{renorm}"]) < TOL


@torch.no_grad()
@pytest.mark.parametrize("renorm", ["global", "channel", "text_channel"])
def test_guided_run(renorm, golden_case, golden_model, rel):
    case = golden_case("cfg")
    vae, vit, text = case.samples[0]
    no_words: Any = None  # the instruction comes as ids
    context = Context(
        golden_model,
        Chain(ChainConfig(name="direct"), no_words, has_vit=True),
        Condition(
            source_latent_BND=vae.data[None],
            source_vit_B3HW=vit.data[None],
            instruction_BT=text.data[None],
            grid=(3, 4),
        ),
        guidance=GuidanceConfig(
            text_scale=case["in.text_scale"].item(),
            image_scale=case["in.image_scale"].item(),
            interval=tuple(case["in.cfg_interval"].tolist()),
            renorm=renorm,
            renorm_min=case["in.renorm_min"].item(),
        ),
    )
    sigmas = flow.sigma_schedule(case["in.run.num_timesteps"].item() - 1, case["in.run.shift"].item())
    assert rel(sigmas, case["out.run.sigmas"]) < TOL
    x = case["in.run.init_noise"][None]
    for step, (t, t_next) in enumerate(pairwise(sigmas)):
        v = context.velocity(x, t[None])
        assert rel(v[0], case[f"out.run.{renorm}.velocities"][step]) < TOL
        x = x - v * (t - t_next)
        assert rel(x[0], case[f"out.run.{renorm}.latents"][step + 1]) < TOL


@torch.no_grad()
@pytest.mark.parametrize("name", ["gvcot_drop_text", "gvcot_drop_source", "gvcot_drop_r"])
def test_dropped_conditions_keep_their_place_in_a_cache(name, golden_case, golden_model, rel):
    case = golden_case(name)
    cache = golden_model.new_cache(1)
    for segment, part in zip(case.samples[0], case.names[0], strict=True):
        if segment.kind != "noise":
            golden_model.prefill(cache, [segment])
            continue
        v = golden_model.velocity(cache, segment.data[None], segment.t[None], segment.grid)
        assert rel(v[0], case[f"out.s0.{part}.velocity"]) < TOL


@torch.no_grad()
def test_euler(golden_case, golden_model, rel):
    case = golden_case("euler")
    cache = golden_model.new_cache(1)
    for segment in case.samples[0]:
        golden_model.prefill(cache, [segment])
    sigmas = flow.sigma_schedule(case["in.num_timesteps"].item() - 1, case["in.shift"].item())
    grid = (4, 3)
    for phase in ("r", "e"):
        x = case[f"in.{phase}.init_noise"][None]
        for step, (t, t_next) in enumerate(pairwise(sigmas)):
            v = golden_model.velocity(cache, x, t[None], grid)
            assert rel(v[0], case[f"out.{phase}.velocities"][step]) < TOL
            x = x - v * (t - t_next)
        assert rel(flow.unpatchify(x, grid, 2)[0], case[f"out.{phase}.final_latent"]) < TOL
        golden_model.prefill(cache, [Segment.vae(x[0], grid)])


def test_training_flag_changes_nothing(golden_case, golden_model):
    packed = pack(golden_case("gvcot_full").samples, golden_model.config)
    trained = golden_model.train()(packed).velocity_MD
    evaluated = golden_model.eval()(packed).velocity_MD
    golden_model.train()
    assert torch.equal(trained, evaluated)
