"""report.html: one file that a person looks at, with every figure in it."""

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from trainer.evaluation.charts import readable
from trainer.evaluation.grids import Figure
from trainer.evaluation.prediction import mean_of


class Headline(NamedTuple):
    """A number that a run is known by."""

    name: str  # a few words
    value: str  # with its unit, or why it is missing
    meaning: str  # one sentence
    known: bool = True  # False where it was skipped


class Row(NamedTuple):
    """What is known of one attribute: texts, empty where something was not measured."""

    name: str
    cells: tuple[str, ...]


def headlines(metrics: dict[str, Any]) -> list[Headline]:
    """The numbers that a run is known by, of what metrics.json holds; those of new faces have a table of their own."""
    reconstruction, encoding, linear = (metrics[key] for key in ("reconstruction", "encoding", "attribute_prediction"))
    features = reconstruction["features"]
    taps = ", ".join(f"{tap} {value:.1%}" for tap, value in features.get("relative", {}).items())
    kl = {"skipped": "the encoder gives points"} if encoding["kl_nats"] is None else encoding
    balanced, precision = (
        percent(linear.get(f"{name}_mean"), "unknown") for name in ("balanced_accuracy", "average_precision")
    )
    return [
        *_edits(metrics["edits"]),
        _line(
            "PSNR",
            reconstruction,
            "{psnr_db:.2f} dB ({psnr_db_quantiles[p5]:.1f} to {psnr_db_quantiles[p95]:.1f} for nine in ten)",
            "Pixel error of reconstructions; higher is closer.",
        ),
        _line("SSIM", reconstruction, "{ssim:.3f}", "Structural similarity, at most 1; higher is closer."),
        _line("LPIPS", reconstruction["lpips"], "{lpips:.3f}", "Difference as people see it; lower is closer."),
        _line(
            "Same person",
            reconstruction["identity"],
            "{similarity:.3f}; different faces {different_faces:.3f}",
            "Cosine similarity that a face recognition network gives an image and its reconstruction.",
        ),
        _line(
            "VGG19 distance",
            features,
            taps,
            "Error of the activations, which the perceptual loss compares, over their mean square; lower is closer.",
        ),
        _line("KL", kl, "{kl_nats:.1f} nats an image", "Information that the latents carry."),
        _line(
            "Active units",
            encoding,
            "{active_units} of {latent_dim}",
            "Dimensions whose mu varies over images by more than 0.01.",
        ),
        _line(
            "Distance from the prior",
            encoding,
            "{ks_mean:.3f}",
            "Kolmogorov and Smirnov's distance of z from N(0, 1), averaged over dimensions; 0 is a perfect fit.",
        ),
        _line(
            "Attributes read off mu",
            linear,
            "{accuracy_mean:.2%} (always the majority: {majority_mean:.2%})",
            "Mean accuracy of a linear SVM for each attribute, on the test split, as in the paper.",
        ),
        _line(
            "Rare ones weighing alike",
            linear,
            f"balanced accuracy {balanced}; average precision {precision}",
            "Of the same SVMs: the mean over images with and without the attribute, 50% for always the majority, and "
            "how well the SVM ranks the images that have it.",
        ),
        _line(
            "Image classifier",
            metrics["classifier"],
            "{accuracy_mean:.2%}; on reconstructions {reconstructions[accuracy_mean]:.2%} (always the majority: "
            "{majority_mean:.2%})",
            "Mean accuracy, on the test split, of the network that judges edits; it never saw a latent.",
        ),
    ]


def _line(name: str, part: dict[str, Any], value: str, meaning: str) -> Headline:
    """A headline of a part of the metrics, with which `value` is formatted where it was not skipped."""
    if "skipped" in part:
        return Headline(name, f"skipped: {part['skipped']}", meaning, known=False)
    return Headline(name, value.format(**part), f"{meaning} {part.get('network', '')}".rstrip())


def verdict(metrics: dict[str, Any]) -> str:
    """What the run can do, in a sentence or two."""
    quality = f"Reconstructions: {metrics['reconstruction']['psnr_db']:.1f} dB."
    made = [edit for edit in metrics["edits"].get("edits", []) if edit["flipped"] is not None]
    if not made:
        return quality
    done = ", ".join(f"{_edit_name(edit)} {edit['flipped']:.0%}" for edit in made)
    kept = mean_of(edit["kept"] for edit in made)
    stay = "" if kept is None else f"; {kept:.0%} of its other predictions stay"
    strength = metrics["edits"]["strength"]
    return f"Edits that an image classifier sees, at strength {strength:g}: {done}{stay}. {quality}"


def _edit_name(made: dict[str, Any]) -> str:
    return f"{readable(made['attribute'])} {'added' if made['strength'] > 0 else 'removed'}"


def percent(value: float | None, missing: str = "") -> str:
    """A share as per cent, or what stands where there is none."""
    return missing if value is None else f"{value:.1%}"


FLIPPED_AND_KEPT = (
    "Flipped: those that the classifier then sees on the wanted side; kept: its other predictions that stay; balanced: "
    "attributes that are there and attributes that are not weigh alike."
)


def _edits(part: dict[str, Any]) -> list[Headline]:
    if "skipped" in part:
        return [_line("Edits", part, "", "What an image classifier sees of edited faces.")]
    found: list[Headline] = []
    for made in part["edits"]:
        kept = "" if made["kept"] is None else f", {made['kept']:.1%} kept"
        kept += "" if made["kept_balanced"] is None else f" ({made['kept_balanced']:.1%} balanced)"
        shares = "no faces to judge" if made["flipped"] is None else f"{made['flipped']:.1%} flipped{kept}"
        meaning = f"At strength {made['strength']:+g}, of {made['faces']} faces."
        found.append(Headline(_edit_name(made), shares, meaning if found else f"{meaning} {FLIPPED_AND_KEPT}"))
    for mode, name in (("plain", "Side effects of edits"), ("keep", "The same with keep")):
        rescored = part["rescoring"].get(mode, {})
        if rescored.get("target") is not None:
            meaning = f"Change of the classifier's logits, averaged over {len(part['rescoring']['edited'])} attributes."
            found.append(_line(name, rescored, "{target:.2f} sigma wanted, {others:.2f} elsewhere", meaning))
    lpips, identity = part["distances"]["lpips"], part["distances"]["identity"]
    same = "Cosine similarity that a face recognition network gives an edited face and its unedited reconstruction"
    return [
        *found,
        *_conditions(part["conditions"]),
        *_best_strengths(part["curves"]),
        _distance("LPIPS of edits", lpips, "How different faces are before and after an edit"),
        _distance("Same person after edits", identity, same),
    ]


def _conditions(part: dict[str, Any]) -> list[Headline]:
    """Each face as far as it needs, beside one strength for all."""
    meaning = "Test faces flipped, other predictions kept, and the person, where one strength for all flips as many."
    if "skipped" in part:
        return [_line("As far as each face needs", part, "", meaning)]
    found = []
    for edit, ways in part["edits"].items():
        known = [
            f"{name} {percent(at['flipped'], 'no faces')}, {percent(at['kept'], '-')} kept, strength "
            f"{at['strength']:+.1f}" + ("" if at["identity"] is None else f", identity {at['identity']:.3f}")
            for name, at in (("each", ways["conditional"]), ("all alike", ways["alike"]))
        ]
        found.append(Headline(f"As far as needed: {readable(edit)}", "; ".join(known), meaning))
    return found


def _best_strengths(part: dict[str, Any]) -> list[Headline]:
    """For every judged attribute and side, what each kind of direction can do."""
    meaning = (
        f"Test faces flipped, and other predictions kept, at the strength that flips most val faces while "
        f"{part['kept_share']:.0%} of the others stay, by kind of direction; the run's own: {part['served']}."
    )
    found = []
    for attribute, sides in part["attributes"].items():
        for side, kinds in sides.items():
            value = ", ".join(
                "{} {flipped:.1%}, {kept:.1%} kept ({strength:+.1f}, {faces} faces)".format(kind, **curve["best"])
                for kind, curve in kinds.items()
                if curve["best"]
            )
            found.append(Headline(f"Best: {side} {readable(attribute)}", value or "no faces to judge", meaning))
    return found


def _distance(name: str, part: dict[str, Any], meaning: str) -> Headline:
    """How far edits move faces."""
    edits = ", ".join(f"{readable(edit)} {value:.3f}" for edit, value in part.get("edits", {}).items())
    value = f"{edits}; different faces {{different_faces:.3f}}"
    return _line(name, part, value, f"{meaning}; different people are there to compare with.")


NETWORKS = {"fid": "FID", "frechet_vgg19": "Fréchet distance on VGG19", "recognition": "Fréchet distance of faces"}
"""What sets of images are compared through, by its key in metrics.json."""
SETS = {
    "mixture": "drawn from the mixture",
    "fitted": "drawn from the Gaussian",
    "prior": "drawn from N(0, I)",
    "reconstructions": "reconstructions",
    "train": "real: training images",
    "test": "real: test images",
}
"""Sets of images, by key."""
PUBLISHED = {"RAE": 40.95, "BIVA": 33.58, "joint latent EBM": 32.15}
"""FID of samples, CelebA at 64 pixels, from tables 2 and 4 of the joint latent EBM paper (ICCV 2023)."""


def _generation(part: dict[str, Any]) -> list[Headline]:
    meaning = "Distance of sets of images to real ones as a whole; real images of other people are the floor."
    found = []
    for key, name in NETWORKS.items():
        distances = part[key].get("distance", {})
        value = ", ".join(f"{distances[each]:.3g} {label}" for each, label in SETS.items() if each in distances)
        found.append(_line(name, part[key], value, meaning))
    return found


def new_faces_table(part: dict[str, Any]) -> tuple[list[str], list[Row]]:
    """How like real images the sets are, and what others have published: the names of the columns, a row a set.

    FID has a column even where it is not measured.
    """
    columns: dict[str, dict[str, str]] = {}
    for key, name in NETWORKS.items():
        short = name.removeprefix("Fréchet distance ")
        kinds = (("distance", name, ".3g"), ("precision", f"as real, {short}", ".0%"))
        for what, column, form in (*kinds, ("recall", f"as varied, {short}", ".0%")):
            columns[column] = {each: f"{value:{form}}" for each, value in part[key].get(what, {}).items()}
    columns["Inception score"] = {
        each: "{mean:.2f} ± {deviation:.2f}".format(**score)
        for each, score in part["fid"].get("inception_score", {}).items()
    }
    columns = {name: column for name, column in columns.items() if column or name == "FID"}
    sets = [each for each in SETS if any(each in column for column in columns.values())] or list(SETS)[:3]
    rows = [Row(SETS[each], tuple(column.get(each, "–") for column in columns.values())) for each in sets]
    others = [Row(f"published: {name}", (f"{fid:.2f}", *["–"] * (len(columns) - 1))) for name, fid in PUBLISHED.items()]
    return list(columns), rows + others


def summary(metrics: dict[str, Any]) -> str:
    """The headlines as lines for the screen."""
    lines = headlines(metrics) + _generation(metrics["generation"])
    width = max(len(line.name) for line in lines) + 2
    return "\n".join(f"{line.name + ':':<{width}}{line.value}" for line in lines)


def attribute_table(metrics: dict[str, Any]) -> tuple[list[str], list[Row]]:
    """The names of the columns, and one row an attribute."""
    linear, judge, edits = metrics["attribute_prediction"], metrics["classifier"], metrics["edits"]
    rescored = edits.get("rescoring", {}).get("plain", {}).get("attributes", {})
    columns: dict[str, dict[str, float | None]] = {
        "linear SVM on mu": linear.get("accuracy", {}),
        "balanced": linear.get("balanced_accuracy", {}),
        "average precision": linear.get("average_precision", {}),
        "always the majority": linear.get("majority", {}) or judge.get("majority", {}),
        "image classifier": judge.get("accuracy", {}),
        "on reconstructions": judge.get("reconstructions", {}).get("accuracy", {}),
    }
    for part in ("flipped", "kept"):  # the mean of adding and removing
        columns[f"{part} by its edit"] = {
            name: mean_of(found[side][part] for side in ("adding", "removing") if found[side])
            for name, found in rescored.items()
        }
    marks = dict.fromkeys(judge.get("unsure", []), " *")
    names = sorted({name for column in columns.values() for name in column})
    return list(columns), [
        Row(readable(name) + marks.get(name, ""), tuple(percent(column.get(name)) for column in columns.values()))
        for name in names
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as `outer.inner`: text."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return found


def embed(drawn: list[Figure], folder: Path) -> list[tuple[Figure, str]]:
    """Each figure with its picture, read from `folder`, as a data URI: WebP, a fraction of the PNG's size."""
    pictures = []
    for figure in drawn:
        buffer = io.BytesIO()
        Image.open(folder / figure.file).convert("RGB").save(buffer, "WEBP", quality=90)
        pictures.append((figure, f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"))
    return pictures


def page(name: str, metrics: dict[str, Any], pictures: list[tuple[Figure, str]], configuration: dict[str, Any]) -> str:
    """The report, one HTML page that needs no other file, of what metrics.json holds; each figure has its address."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    lines = headlines(metrics)
    sections = ("edits", "faces", "figures")
    return environment.get_template("report.html.jinja").render(
        metrics,
        name=name,
        verdict=verdict(metrics),
        headlines=[line for line in lines if line.known],
        missing=[line for line in lines + _generation(metrics["generation"]) if not line.known],
        sections={section: [pair for pair in pictures if pair[0].section == section] for section in sections},
        new_faces=new_faces_table(metrics["generation"]),
        networks=NETWORKS,
        sets=SETS,
        attributes=attribute_table(metrics),
        configuration=_flat(configuration),
    )
