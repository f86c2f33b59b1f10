"""Choose the form of a layer: by timing where there is a meter, by multiplications elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from aigc_compress.artifact import Artifact
from aigc_compress.errors import AigcCompressError, StoppedError, first_line
from aigc_compress.meter import Meter, Speedup
from aigc_compress.task import Feeds

from .forms import (
    FORMS,
    SPELLINGS,
    EngineName,
    FormName,
    Precision,
    multiplications,
    refusal,
    write_form,
)
from .geometry import Geometry
from .layer import Layer
from .single import SOURCE, TARGET, bordered_model, integer_model, single_model

__all__ = ["Choice", "Setting", "choose_by_time", "choose_by_work"]

INTEGER = {"ort": integer_model, "openvino": bordered_model}


@dataclass(frozen=True)
class Setting:
    """What a layer is chosen for: the graph's opset, the precision it will run in, the engine."""

    opset: int
    precision: Precision
    engine: EngineName = "ort"


@dataclass(frozen=True)
class Choice:
    """The form of a layer.

    Attributes:
        form: the chosen one, or None: ConvTranspose stays.
        ratios: by form, how many times as fast as the float ConvTranspose it was, where timed.
        refused: by form, why it does not apply or was not timed.
        reason: why ConvTranspose stays.
    """

    form: FormName | None
    ratios: Mapping[FormName, float] = field(default_factory=dict)
    refused: Mapping[FormName, str] = field(default_factory=dict)
    reason: str = ""


def choose_by_work(
    layer: Layer, sizes: Sequence[int], setting: Setting, *, wanted: FormName | None = None
) -> Choice:
    """Return the Conv form with the fewest multiplications, the first of FORMS where equal.

    Args:
        layer: the ConvTranspose.
        sizes: spatial sizes of its input.
        setting: what it is chosen for.
        wanted: a form that is taken wherever it applies.
    """
    refused = _refused(layer.geometry, setting)
    if wanted and wanted not in refused:
        return Choice(wanted, refused=refused)
    work: dict[FormName, int] = {}
    for form, plan in FORMS.items():
        if plan and form not in refused:
            work[form] = multiplications(form, layer.geometry, sizes)
    fewest: FormName = min(work, key=work.__getitem__)
    return Choice(fewest, refused=refused)


def choose_by_time(layer: Layer, sample: NDArray[Any], setting: Setting, meter: Meter) -> Choice:
    """Return the fastest form on a sample of the layer's input, as `meter` tells.

    On floats ConvTranspose stays unless a form is shown to be faster. On integers it stays only
    where the best form is shown to be slower: a form is timed between Q/DQ of its own, which it
    shares with its neighbours in a quantized graph. On another engine than ONNX Runtime it stays
    where none is faster there.
    """
    candidates, refused = _candidates(layer, sample, setting)
    if not candidates:
        return Choice(None, refused=refused, reason="no form could be timed")
    models = [_baseline(layer, setting), *candidates.values()]
    baseline, *others = (Artifact("onnx", each) for each in models)
    try:
        speedups, kept = _speedups(meter, baseline, others, {SOURCE: sample}, setting.engine)
    except StoppedError:
        raise
    except AigcCompressError as error:
        told = f"not timed: {first_line(error)}"
        untimed: dict[FormName, str] = dict.fromkeys(candidates, told)
        chosen = choose_by_work(layer, sample.shape[2:], setting)
        return Choice(chosen.form, refused=refused | untimed)
    found = dict(zip(candidates, speedups, strict=True))
    best = max(found, key=lambda form: found[form].ratio)
    ratios: dict[FormName, float] = {form: each.ratio for form, each in found.items()}
    if kept is not None:  # itself timed on another engine
        if found[best].ratio > kept.ratio:
            return Choice(best, ratios, refused)
        told = f"{found[best].ratio / kept.ratio:.2f} times as fast on {setting.engine}"
        return Choice(None, ratios, refused, reason=f"the best form, {best}: {told}")
    verdict = found[best].verdict
    if verdict == "faster" or (setting.precision == "integer" and verdict != "slower"):
        return Choice(best, ratios, refused)
    return Choice(None, ratios, refused, reason=f"the best form, {best}: {verdict}")


def _speedups(
    meter: Meter, baseline: Artifact, others: Sequence[Artifact], feeds: Feeds, engine: EngineName
) -> tuple[Sequence[Speedup], Speedup | None]:
    """Return the speed-up of every form over ConvTranspose on ONNX Runtime.

    On another engine, that of ConvTranspose there comes with them.
    """
    if engine == "ort":
        return meter.compare(baseline, others, feeds), None
    rivals = [baseline, *others]
    kept, *speedups = meter.compare(baseline, rivals, feeds, [engine] * len(rivals))
    return speedups, kept


def _refused(geometry: Geometry, setting: Setting) -> dict[FormName, str]:
    reasons: dict[FormName, str] = {}
    for form in FORMS:
        if reason := refusal(form, geometry, opset=setting.opset):
            reasons[form] = reason
    return reasons


def _candidates(
    layer: Layer, sample: NDArray[Any], setting: Setting
) -> tuple[dict[FormName, ModelProto], dict[FormName, str]]:
    """Return one model per form that applies, and why others have none."""
    refused, models = _refused(layer.geometry, setting), {}
    for form in FORMS:
        if form in refused:
            continue
        draft = write_form(
            form,
            layer,
            prefix=form,
            source=SOURCE,
            target=TARGET,
            opset=setting.opset,
            precision=setting.precision,
            spelling=SPELLINGS[setting.engine],
        )
        models[form] = single_model(
            draft.nodes, draft.constants, _shape(layer), opset=setting.opset
        )
        if setting.precision == "integer":
            try:
                models[form] = INTEGER[setting.engine](models[form], {SOURCE: sample})
            except Exception as error:  # the tool raises whatever its helpers do
                refused[form] = f"ONNX Runtime's tool does not quantize it: {first_line(error)}"
                del models[form]
    return models, refused


def _baseline(layer: Layer, setting: Setting) -> ModelProto:
    axes = layer.geometry.axes
    tables = {"w": layer.weight} | ({} if layer.bias is None else {"b": layer.bias})
    node = helper.make_node(
        "ConvTranspose",
        [SOURCE, *tables],
        [TARGET],
        strides=[axis.stride for axis in axes],
        dilations=[axis.dilation for axis in axes],
        output_padding=[axis.output_padding for axis in axes],
        pads=[*(axis.begin for axis in axes), *(axis.end for axis in axes)],
        group=layer.geometry.group,
    )
    stored = [numpy_helper.from_array(table, name) for name, table in tables.items()]
    return single_model([node], stored, _shape(layer), opset=setting.opset)


def _shape(layer: Layer) -> list[int | str]:
    sizes = [f"size{axis}" if size is None else size for axis, size in enumerate(layer.sizes)]
    return ["N", layer.geometry.inputs, *sizes]
