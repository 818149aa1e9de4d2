"""report.html: one file that a person looks at, with every figure in it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from trainer.evaluation.charts import readable
from trainer.evaluation.grids import Figure
from trainer.evaluation.prediction import mean_of

TEMPLATE = "report.html.jinja"


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
    return [
        *_edits(metrics["edits"]),
        *_reconstruction(metrics["reconstruction"]),
        *_encoding(metrics["encoding"]),
        *_attributes(metrics["attribute_prediction"], metrics["classifier"]),
    ]


def verdict(metrics: dict[str, Any]) -> str:
    """What the run can do, in a sentence or two."""
    found = []
    made = [edit for edit in metrics["edits"].get("edits", []) if edit["flipped"] is not None]
    if made:
        done = ", ".join(f"{_edit_name(edit)} {edit['flipped']:.0%}" for edit in made)
        kept = mean_of(edit["kept"] for edit in made)
        stay = "" if kept is None else f"; {kept:.0%} of its other predictions stay"
        found.append(
            f"Edits that an image classifier sees, at strength {metrics['edits']['strength']:g}: {done}{stay}."
        )
    found.append(f"Reconstructions: {metrics['reconstruction']['psnr_db']:.1f} dB.")
    return " ".join(found)


def _edit_name(made: dict[str, Any]) -> str:
    return f"{readable(made['attribute'])} {'added' if made['strength'] > 0 else 'removed'}"


def _percent(value: float | None, missing: str = "") -> str:
    return missing if value is None else f"{value:.1%}"


def _or_skipped(name: str, part: dict[str, Any], value: str, meaning: str) -> Headline:
    """A headline of `part`; `value` is formatted with it where it was not skipped."""
    if "skipped" in part:
        return Headline(name, f"skipped: {part['skipped']}", meaning, known=False)
    return Headline(name, value.format(**part), f"{meaning} {part.get('network', '')}".rstrip())


def _reconstruction(part: dict[str, Any]) -> list[Headline]:
    quantiles, count = part["psnr_db_quantiles"], f"{part['images']:,} {part['split']} images"
    psnr = f"{part['psnr_db']:.2f} dB ({quantiles['p5']:.1f} to {quantiles['p95']:.1f} for nine in ten)"
    taps = ", ".join(f"{tap} {value:.1%}" for tap, value in part["features"].get("relative", {}).items())
    return [
        Headline("PSNR", psnr, f"Pixel error of {count}; higher is closer."),
        Headline("SSIM", f"{part['ssim']:.3f}", f"Structural similarity of {count}, at most 1; higher is closer."),
        _or_skipped("LPIPS", part["lpips"], "{lpips:.3f}", f"Difference of {count} as people see it; lower is closer."),
        _or_skipped(
            "Same person",
            part["identity"],
            "{similarity:.3f}; different faces {different_faces:.3f}",
            "Cosine similarity that a face recognition network gives an image and its reconstruction.",
        ),
        _or_skipped(
            "VGG19 distance",
            part["features"],
            taps,
            f"Error of the activations, which the perceptual loss compares, over their mean square, {count}; lower is "
            "closer.",
        ),
    ]


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
        found.append(_or_skipped(name, part[key], value, meaning))
    return found


def new_faces_table(part: dict[str, Any]) -> tuple[list[str], list[Row]]:
    """How like real images the sets are, and what others have published: the names of the columns, a row a set.

    FID has a column even where it is not measured.
    """
    columns: dict[str, dict[str, str]] = {}
    for key, name in NETWORKS.items():
        found = part[key]
        columns[name] = {each: f"{value:.3g}" for each, value in found.get("distance", {}).items()}
        for share, meaning in (("precision", "as real"), ("recall", "as varied")):
            columns[f"{meaning}, {NETWORKS[key].removeprefix('Fréchet distance ')}"] = {
                each: f"{value:.0%}" for each, value in found.get(share, {}).items()
            }
    columns["Inception score"] = {
        each: "{mean:.2f} ± {deviation:.2f}".format(**score)
        for each, score in part["fid"].get("inception_score", {}).items()
    }
    columns = {name: column for name, column in columns.items() if column or name == "FID"}
    sets = [each for each in SETS if any(each in column for column in columns.values())] or list(SETS)[:3]
    rows = [Row(SETS[each], tuple(column.get(each, "–") for column in columns.values())) for each in sets]
    others = [Row(f"published: {name}", (f"{fid:.2f}", *["–"] * (len(columns) - 1))) for name, fid in PUBLISHED.items()]
    return list(columns), rows + others


def _encoding(part: dict[str, Any]) -> list[Headline]:
    kl = part["kl_nats"]
    nats = "none: the encoder gives points" if kl is None else f"{kl:.1f} nats an image"
    active = f"{part['active_units']} of {part['latent_dim']}"
    distance = "Kolmogorov and Smirnov's distance of z from N(0, 1), averaged over dimensions; 0 is a perfect fit."
    return [
        Headline("KL", nats, "Information that the latents carry.", known=kl is not None),
        Headline("Active units", active, "Dimensions whose mu varies over images by more than 0.01."),
        Headline("Distance from the prior", f"{part['ks_mean']:.3f}", distance),
    ]


def _attributes(linear: dict[str, Any], classifier: dict[str, Any]) -> list[Headline]:
    balanced, precision = (
        _percent(linear.get(f"{name}_mean"), "unknown") for name in ("balanced_accuracy", "average_precision")
    )
    return [
        _or_skipped(
            "Attributes read off mu",
            linear,
            "{accuracy_mean:.2%} (always the majority: {majority_mean:.2%})",
            "Mean accuracy of a linear SVM for each attribute, on the test split, as in the paper.",
        ),
        _or_skipped(
            "Rare ones weighing alike",
            linear,
            f"balanced accuracy {balanced}; average precision {precision}",
            "Of the same SVMs: the mean over images with and without the attribute, 50% for always the majority, and "
            "how well the SVM ranks the images that have it.",
        ),
        _or_skipped(
            "Image classifier",
            classifier,
            "{accuracy_mean:.2%}; on reconstructions {reconstructions[accuracy_mean]:.2%} (always the majority: "
            "{majority_mean:.2%})",
            "Mean accuracy, on the test split, of the network that judges edits; it never saw a latent.",
        ),
    ]


FLIPPED_AND_KEPT = (
    "Flipped: those that the classifier then sees on the wanted side; kept: its other predictions that stay; balanced: "
    "attributes that are there and attributes that are not weigh alike."
)


def _edits(part: dict[str, Any]) -> list[Headline]:
    if "skipped" in part:
        return [_or_skipped("Edits", part, "", "What an image classifier sees of edited faces.")]
    found: list[Headline] = []
    for made in part["edits"]:
        kept = "" if made["kept"] is None else f", {made['kept']:.1%} kept"
        kept += "" if made["kept_balanced"] is None else f" ({made['kept_balanced']:.1%} balanced)"
        shares = "no faces to judge" if made["flipped"] is None else f"{made['flipped']:.1%} flipped{kept}"
        meaning = f"At strength {made['strength']:+g}, of {made['faces']} faces."
        found.append(Headline(_edit_name(made), shares, meaning if found else f"{meaning} {FLIPPED_AND_KEPT}"))
    rescoring = part["rescoring"]
    modes = (("plain", "Side effects of edits"), ("keep", "The same with keep"))
    for mode, name in modes if "skipped" not in rescoring else ():
        if rescoring[mode]["target"] is None:
            continue
        value = "{target:.2f} sigma wanted, {others:.2f} elsewhere".format(**rescoring[mode])
        meaning = f"Change of the classifier's logits, averaged over {len(rescoring['edited'])} attributes."
        found.append(Headline(name, value, meaning))
    return [*found, *_wishes(part["wishes"]), *_best_strengths(part["curves"]), *_distances(part["distances"])]


def _wishes(part: dict[str, Any]) -> list[Headline]:
    """Each face as far as it needs, beside one strength for all."""
    meaning = "Test faces flipped, other predictions kept, and the person, where one strength for all flips as many."
    if "skipped" in part:
        return [_or_skipped("As far as each face needs", part, "", meaning)]
    found = []
    for edit, ways in part["edits"].items():
        known = [
            f"{name} {_percent(at['flipped'], 'no faces')}, {_percent(at['kept'], '-')} kept, strength "
            f"{at['strength']:+.1f}" + ("" if at["identity"] is None else f", identity {at['identity']:.3f}")
            for name, at in (("each", ways["wished"]), ("all alike", ways["alike"]))
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
            best = {kind: curve["best"] for kind, curve in kinds.items() if curve["best"]}
            value = ", ".join(
                f"{kind} {at['flipped']:.1%}, {_percent(at['kept'])} kept ({at['strength']:+.1f}, {at['faces']} faces)"
                for kind, at in best.items()
            )
            found.append(Headline(f"Best: {side} {readable(attribute)}", value or "no faces to judge", meaning))
            meaning = ""
    return found


def _distances(part: dict[str, Any]) -> list[Headline]:
    compared = "different people are there to compare with."
    meanings = {
        "lpips": ("LPIPS of edits", f"How different faces are before and after an edit; {compared}"),
        "identity": (
            "Same person after edits",
            "Cosine similarity that a face recognition network gives an edited face and its unedited reconstruction; "
            + compared,
        ),
    }
    found = []
    for key, (name, meaning) in meanings.items():
        edits = ", ".join(f"{readable(edit)} {value:.3g}" for edit, value in part[key].get("edits", {}).items())
        value = "{edited}; different faces {different_faces:.3g}"
        found.append(_or_skipped(name, {**part[key], "edited": edits}, value, meaning))
    return found


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
        Row(readable(name) + marks.get(name, ""), tuple(_percent(column.get(name)) for column in columns.values()))
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
    return [(figure, f"data:image/webp;base64,{_webp(folder / figure.file)}") for figure in drawn]


def _webp(file: Path) -> str:
    buffer = io.BytesIO()
    with Image.open(file) as image:
        image.convert("RGB").save(buffer, "WEBP", quality=90)
    return base64.b64encode(buffer.getvalue()).decode()


def page(name: str, metrics: dict[str, Any], pictures: list[tuple[Figure, str]], configuration: dict[str, Any]) -> str:
    """The report, one HTML page that needs no other file, of what metrics.json holds; each figure has its address."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    columns, rows = attribute_table(metrics)
    generation = metrics["generation"]
    new_columns, new_rows = new_faces_table(generation)
    lines = headlines(metrics)
    unknown = [line for line in lines + _generation(generation) if not line.known]
    return environment.get_template(TEMPLATE).render(
        name=name,
        evaluation=metrics["evaluation"],
        verdict=verdict(metrics),
        headlines=[line for line in lines if line.known],
        missing=unknown,
        sections={
            section: [picture for picture in pictures if picture[0].section == section]
            for section in ("edits", "faces", "figures")
        },
        new_columns=new_columns,
        new_rows=new_rows,
        compared=[
            {
                **generation[key],
                "name": name,
                "images": {SETS[each]: count for each, count in generation[key]["images"].items()},
            }
            for key, name in NETWORKS.items()
            if "skipped" not in generation[key]
        ],
        columns=columns,
        rows=rows,
        left_out=metrics["attribute_prediction"].get("left_out", []),
        unsure=bool(metrics["classifier"].get("unsure")),
        strength=metrics["edits"].get("strength"),
        configuration=_flat(configuration),
    )
