"""Interpolate, Sample and conditions of a real server."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from batches import file_batch, floats_of, latent_batch, pixels_of, raw_batch
from bundles import add_prior, reseal, write_tiny_bundle
from fuzzing.files import file_of
from gates import connected, gated_server, until
from PIL import Image
from servers import server_of
from tiny_model import LATENT_DIM, images_of, latents_of, random_images, save_directions, tiny_directions

from engine.latents import Conditions, Gaussian, Mixture, linear, spherical
from protos import dfcvae_pb2 as pb

LATENTS, BOTH = pb.EDIT_RESULT_LATENTS, pb.EDIT_RESULT_IMAGES_AND_LATENTS


@pytest.mark.parametrize(("walk", "path"), [(pb.WALK_UNSPECIFIED, linear), (pb.WALK_SPHERICAL, spherical)])
@pytest.mark.parametrize("ends", ["images", "latents", "mixed"])
def test_walks_go_pair_by_pair_from_end_to_end(stub: Any, walk: Any, path: Any, ends: str) -> None:
    start, end = random_images(3, seed=1), random_images(3, seed=2)
    first = (
        pb.WalkEnd(images=raw_batch(start))
        if ends != "latents"
        else pb.WalkEnd(latents=latent_batch(latents_of(start)))
    )
    last = pb.WalkEnd(images=raw_batch(end)) if ends == "images" else pb.WalkEnd(latents=latent_batch(latents_of(end)))
    answer = stub.Interpolate(pb.InterpolateRequest(start=first, end=last, steps=5, walk=walk, result=BOTH))
    expected = path(latents_of(start), latents_of(end), 5)
    np.testing.assert_array_equal(floats_of(answer.latents), expected)
    np.testing.assert_array_equal(pixels_of(answer.images), images_of(expected))
    np.testing.assert_array_equal(pixels_of(answer.images)[::5], start)


def test_a_walk_between_files_comes_back_as_files(stub: Any) -> None:
    pictures = (Image.new("RGB", (20, 20), colour) for colour in ("black", "white"))
    black, white = (pb.WalkEnd(images=file_batch([file_of(picture)])) for picture in pictures)
    output = pb.ImageOutput(format=pb.IMAGE_FORMAT_PNG)
    answer = stub.Interpolate(pb.InterpolateRequest(start=black, end=white, steps=3, output=output))
    levels = [np.asarray(Image.open(io.BytesIO(one)))[0, 0, 0] for one in answer.images.files.files]
    assert levels == [0, 128, 255]  # 127.5 rounds half to even


def test_samples_are_those_of_their_seed(stub: Any) -> None:
    def sample(count: int, **fields: Any) -> Any:
        return stub.Sample(pb.SampleRequest(count=count, **fields))

    answer = sample(4, seed=7, result=BOTH)
    expected = Gaussian.standard(LATENT_DIM).draw(4, 7)
    np.testing.assert_array_equal(floats_of(answer.latents), expected)
    np.testing.assert_array_equal(pixels_of(answer.images), images_of(expected))
    np.testing.assert_array_equal(floats_of(sample(2, seed=7, result=LATENTS).latents), expected[:2])
    assert not np.array_equal(floats_of(sample(4, seed=8, result=LATENTS).latents), expected)
    colder = floats_of(sample(4, seed=7, temperature=0.5, result=LATENTS).latents)
    np.testing.assert_allclose(colder, expected / 2, rtol=1e-6)
    assert not floats_of(sample(1, seed=7, temperature=0, result=LATENTS).latents).any()


def test_large_requests_get_the_same_as_small_ones(stub: Any) -> None:
    sampled = stub.Sample(pb.SampleRequest(count=1024, seed=7, result=BOTH))
    expected = Gaussian.standard(LATENT_DIM).draw(1024, 7)
    np.testing.assert_array_equal(floats_of(sampled.latents), expected)
    np.testing.assert_array_equal(pixels_of(sampled.images), images_of(expected))
    start, end = latents_of(random_images(32, seed=1)), latents_of(random_images(32, seed=2))
    first, last = pb.WalkEnd(latents=latent_batch(start)), pb.WalkEnd(latents=latent_batch(end))
    walk = pb.InterpolateRequest(start=first, end=last, steps=32, walk=pb.WALK_SPHERICAL, result=BOTH)
    walked = stub.Interpolate(walk)
    np.testing.assert_array_equal(floats_of(walked.latents), spherical(start, end, 32))
    opposite = pb.InterpolateRequest(start=END, end=OPPOSITE, steps=1024, walk=pb.WALK_SPHERICAL)
    with pytest.raises(grpc.RpcError, match="opposite"):
        stub.Interpolate(opposite, timeout=60)


@pytest.mark.parametrize("mixed", [True, False])
def test_a_bundle_draws_from_the_priors_that_it_has(tmp_path: Path, mixed: bool) -> None:
    fitted = Gaussian(np.full(LATENT_DIM, 100, np.float32), 20 * np.eye(LATENT_DIM, dtype=np.float32))
    mixture = Mixture(np.array([1.0, 2.0]), (fitted, Gaussian.standard(LATENT_DIM)))
    bundle = write_tiny_bundle(tmp_path / "bundle")
    add_prior(bundle, fitted, mixture if mixed else None)
    priors: dict[Any, Gaussian | Mixture] = {pb.DISTRIBUTION_MIXTURE: mixture} if mixed else {}
    priors |= {pb.DISTRIBUTION_FITTED: fitted, pb.DISTRIBUTION_STANDARD: Gaussian.standard(LATENT_DIM)}
    with server_of(bundle, tmp_path) as server, connected(server.target) as stub:
        known = stub.GetModel(pb.GetModelRequest()).distributions
        assert list(known) == list(priors)
        for distribution, prior in {pb.DISTRIBUTION_UNSPECIFIED: priors[known[0]], **priors}.items():
            answer = stub.Sample(pb.SampleRequest(count=9, seed=1, distribution=distribution, result=LATENTS))
            np.testing.assert_array_equal(floats_of(answer.latents), prior.draw(9, 1))
        ends = floats_of(stub.Sample(pb.SampleRequest(count=2, result=LATENTS)).latents)
        start, end = (pb.WalkEnd(latents=latent_batch(one[None])) for one in ends)
        walk = pb.InterpolateRequest(start=start, end=end, steps=5, walk=pb.WALK_SPHERICAL, result=LATENTS)
        points = floats_of(stub.Interpolate(walk).latents)
        np.testing.assert_array_equal(points, spherical(ends[:1], ends[1:], 5, fitted.mean))


def test_samples_meet_conditions(stub: Any) -> None:
    def sample(count: int) -> Any:
        return stub.Sample(pb.SampleRequest(count=count, seed=7, having=["Smiling"], lacking=["Male"], result=BOTH))

    answer = sample(300)
    drawn = Gaussian.standard(LATENT_DIM).draw(300, 7)
    expected = Conditions.of(tiny_directions(), ["Smiling"], ["Male"]).project(drawn)
    np.testing.assert_array_equal(floats_of(answer.latents), expected)
    np.testing.assert_array_equal(pixels_of(answer.images), images_of(expected))
    np.testing.assert_array_equal(floats_of(sample(2).latents), expected[:2])
    np.testing.assert_allclose(floats_of(answer.latents)[:, ::3].mean(axis=1), 130, rtol=1e-3)  # 13 times 10


@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("count", [3, 300])  # on the event loop, and off it
def test_faces_are_moved_until_they_meet_conditions(stub: Any, encoded: bool, count: int) -> None:
    images = random_images(count, seed=4)
    source: Any = {"images": raw_batch(images)} if encoded else {"latents": latent_batch(latents_of(images))}
    conditional: Any = {"having": ["Smiling"], "lacking": ["Male"], "keep": ["Eyeglasses"]}
    directions = tiny_directions()
    conditions = Conditions.of(directions, *conditional.values())
    moved = latents_of(images) + directions.move([("Smiling", -2.0)], ["Eyeglasses"]).step
    for edits, latents in (([], latents_of(images)), ([pb.Edit(attribute="Smiling", strength=-2)], moved)):
        answer = stub.Edit(pb.EditRequest(edits=edits, result=BOTH, **source, **conditional))
        np.testing.assert_array_equal(floats_of(answer.latents), conditions.project(latents))
        np.testing.assert_array_equal(pixels_of(answer.images), images_of(conditions.project(latents)))
        only = stub.Edit(pb.EditRequest(edits=edits, result=LATENTS, **source, **conditional))
        np.testing.assert_array_equal(floats_of(only.latents), conditions.project(latents))


def test_a_stream_holds_its_last_source_to_conditions(stub: Any) -> None:
    images = random_images(2, seed=5)
    first = pb.EditStreamRequest(images=raw_batch(images), having=["Smiling"], id=1)
    steps = [first, pb.EditStreamRequest(lacking=["Smiling"], id=2), pb.EditStreamRequest(having=["Bald"], id=3)]
    *answers, refused = stub.EditStream(iter(steps), timeout=60)
    for answer, sides in zip(answers, ((["Smiling"], []), ([], ["Smiling"])), strict=True):
        expected = Conditions.of(tiny_directions(), *sides).project(latents_of(images))
        np.testing.assert_array_equal(pixels_of(answer.edited.images), images_of(expected))
    assert "unknown attribute 'Bald'" in refused.error.message


def test_a_bundle_without_sides_says_what_conditions_need(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    save_directions(replace(tiny_directions(), sides=()), bundle / "directions.safetensors")
    reseal(bundle)
    with server_of(bundle, tmp_path) as server, connected(server.target) as stub:
        assert not any(one.can_condition for one in stub.GetModel(pb.GetModelRequest(), timeout=60).attributes)
        with pytest.raises(grpc.RpcError, match=r"'Smiling' lie is not known to this bundle.*python -m trainer direct"):
            stub.Sample(pb.SampleRequest(count=1, having=["Smiling"]), timeout=60)


@pytest.mark.parametrize("result", [pb.EDIT_RESULT_UNSPECIFIED, LATENTS])
def test_nothing_is_computed_for_a_request_that_a_full_queue_refuses(tmp_path: Path, result: Any) -> None:
    # What is drawn from this one doesn't fit float32, which is noticed as soon as it is drawn.
    endless = Gaussian(np.zeros(LATENT_DIM, np.float32), np.full((LATENT_DIM, LATENT_DIM), 3e38, np.float32))
    bundle = write_tiny_bundle(tmp_path / "bundle")
    add_prior(bundle, endless)
    walk = pb.InterpolateRequest(start=END, end=OPPOSITE, steps=10, walk=pb.WALK_SPHERICAL, result=result)
    with (
        gated_server(bundle, tmp_path, "--max-queue", "20", "--metrics-port", "0") as gate,
        connected(gate.server.target) as stub,
    ):

        def status(call: Any, request: Any) -> str:
            with pytest.raises(grpc.RpcError) as refusal:
                call(request, timeout=60)
            return str(refusal.value.code().name)

        sample = pb.SampleRequest(count=10, result=result)
        assert status(stub.Sample, sample) == status(stub.Interpolate, walk) == "INVALID_ARGUMENT"
        gate.close()
        standard = pb.SampleRequest(count=15, distribution=pb.DISTRIBUTION_STANDARD)
        running = [stub.Sample.future(standard)]
        until(lambda: len(gate.batches()) == 1)
        running.append(stub.Sample.future(standard))
        until(lambda: gate.server.metric("dfcvae_queue_images", model="default", graph="decode") == 15)
        assert status(stub.Sample, sample) == status(stub.Interpolate, walk) == "RESOURCE_EXHAUSTED"
        gate.open()
        assert [call.result().images.raw.count for call in running] == [15, 15]


UNKNOWN: Any = 9
END = pb.WalkEnd(latents=latent_batch(np.ones((1, LATENT_DIM), np.float32)))
OPPOSITE = pb.WalkEnd(latents=latent_batch(-np.ones((1, LATENT_DIM), np.float32)))
BAD = {
    "no start": (pb.InterpolateRequest(end=END, steps=2), "start has no source; set start.images or start.latents"),
    "no end": (pb.InterpolateRequest(start=END, steps=2), "end has no source"),
    "one step": (pb.InterpolateRequest(start=END, end=END, steps=1), "steps is 1"),
    "too many points": (
        pb.InterpolateRequest(start=END, end=END, steps=1025),
        "steps: 1025 images or latents; a request may ask for",
    ),
    "unequal ends": (
        pb.InterpolateRequest(start=END, end=pb.WalkEnd(images=raw_batch(random_images(2, seed=1))), steps=2),
        "start has 1 images or latents, end has 2",
    ),
    "unknown walk": (pb.InterpolateRequest(start=END, end=END, steps=2, walk=UNKNOWN), "walk is 9"),
    "opposite": (pb.InterpolateRequest(start=END, end=OPPOSITE, steps=2, walk=pb.WALK_SPHERICAL), "opposite"),
    "bad end": (
        pb.InterpolateRequest(start=END, end=pb.WalkEnd(latents=pb.LatentBatch(count=1, dim=3)), steps=2),
        "end.latents.dim is 3",
    ),
    "no samples": (pb.SampleRequest(), "count: 0 images or latents; ask for at least one"),
    "too many samples": (
        pb.SampleRequest(count=1025),
        "count: 1025 images or latents; a request may ask for at most 1024",
    ),
    "negative temperature": (pb.SampleRequest(count=1, temperature=-1), "temperature is -1; it goes from 0 to 10"),
    "NaN temperature": (pb.SampleRequest(count=1, temperature=float("nan")), "temperature is nan"),
    "unknown distribution": (pb.SampleRequest(count=1, distribution=UNKNOWN), "distribution is 9"),
    "no fitted distribution": (
        pb.SampleRequest(count=1, distribution=pb.DISTRIBUTION_FITTED),
        "has no fitted one, only standard",
    ),
    "had and lacked": (
        pb.SampleRequest(count=1, having=["Male", "Smiling"], lacking=["Smiling"]),
        "'Smiling' is in having and in lacking",
    ),
    "attribute of no model": (pb.SampleRequest(count=1, lacking=["Bald"]), "unknown attribute 'Bald'"),
    "unknown priority": (pb.SampleRequest(count=1, priority=UNKNOWN), "priority is 9"),
    "unknown model": (pb.SampleRequest(count=1, model="nobody"), "no model 'nobody' is served here"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_gets_a_status_and_a_message(stub: Any, name: str) -> None:
    request, message = BAD[name]
    call = stub.Sample if isinstance(request, pb.SampleRequest) else stub.Interpolate
    with pytest.raises(grpc.RpcError) as refusal:
        call(request, timeout=60)
    assert refusal.value.code().name == ("NOT_FOUND" if "model" in name else "INVALID_ARGUMENT")
    assert message in refusal.value.details()
