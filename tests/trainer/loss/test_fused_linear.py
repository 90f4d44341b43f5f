"""The fused loss is the dense one, in value and every gradient, and never holds [B, T, V]."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainer.loss.reference_loss import KINDS, Case, kind_id, make_case
from trainer.loss import projection
from trainer.loss.fused_linear import (
    FusedLinearTopKDistillationLoss,
    fused_linear_topk_distillation_loss,
)
from trainer.loss.loss_inputs import LossOutput
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import topk_distillation_loss

KIND_IDS = [kind_id(kind) for kind in KINDS]
HIDDEN = 6


class Head:
    """Hidden states, a weight and a bias that need gradients, and the logits they make."""

    def __init__(self, case: Case, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        batch, tokens, vocab_size = case.student_logits.shape
        generator = torch.Generator().manual_seed(seed)

        def leaf(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

        self.hidden, self.weight, self.bias = (
            leaf(batch, tokens, HIDDEN),
            leaf(vocab_size, HIDDEN),
            leaf(vocab_size),
        )

    def gradients(self, output: LossOutput) -> list[Tensor]:
        wanted = [tensor for tensor in (self.hidden, self.weight, self.bias) if tensor.requires_grad]
        return list(torch.autograd.grad(output.loss, wanted, allow_unused=True, materialize_grads=True))


def assert_same_output(found: LossOutput, expected: LossOutput) -> None:
    """Of losses without a tail the teacher's mass, a metric, is NaN in both."""
    for record, other in ((found, expected), (found.metrics, expected.metrics)):
        is_metrics = record is found.metrics
        for field in dataclasses.fields(record):
            value = getattr(record, field.name)
            if isinstance(value, Tensor):
                torch.testing.assert_close(
                    value, getattr(other, field.name), rtol=1e-12, atol=1e-12, equal_nan=is_metrics
                )


@pytest.mark.parametrize("kind", KINDS, ids=KIND_IDS)
@pytest.mark.parametrize("top_k", [1, 5, 23])
def test_equals_the_dense_loss(kind, top_k):
    for temperature, alpha, chunk_rows in itertools.product((1.0, 2.0), (0.0, 0.7, 1.0), (1, 4, 100)):
        case = make_case(2, temperature=temperature, top_k=top_k, ragged=top_k == 5)
        head = Head(case)
        loss_settings = LossSettings(temperature=temperature, alpha=alpha, **kind)
        logits = head.hidden @ head.weight.t() + head.bias
        dense = topk_distillation_loss(logits, case.labels, case.targets, loss_settings)
        dense_grads = head.gradients(dense)
        fused = fused_linear_topk_distillation_loss(
            head.hidden,
            head.weight,
            case.labels,
            case.targets,
            loss_settings,
            bias_V=head.bias,
            chunk_rows=chunk_rows,
        )
        assert_same_output(fused, dense)
        torch.testing.assert_close(head.gradients(fused), dense_grads, rtol=1e-10, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_gradient_is_the_derivative(softcap):
    case = make_case(3, batch=1, tokens=4, vocab_size=9, temperature=2.0, ragged=True)
    case.labels.clamp_(min=0)
    head = Head(case)

    def loss(hidden, weight, bias):
        return fused_linear_topk_distillation_loss(
            hidden,
            weight,
            case.labels,
            case.targets,
            LossSettings(temperature=2.0, beta=0.4),
            bias_V=bias,
            logit_scale=0.5,
            logit_softcap=softcap,
            chunk_rows=2,
        ).loss

    assert torch.autograd.gradcheck(loss, (head.hidden, head.weight, head.bias))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_scale_and_softcap(temperature):
    """Cohere's scale and Gemma's cap, on a head that is wider than the vocabulary."""
    case = make_case(5, temperature=temperature)
    head = Head(case)
    wide = (
        torch.cat([head.weight, torch.full((4, HIDDEN), 7.0, dtype=torch.float64)]).detach().requires_grad_()
    )
    loss_settings = LossSettings(temperature=temperature, vocab_size=23)
    logits = 2.0 * torch.tanh(0.3 * (head.hidden @ wide.t()) / 2.0)
    dense = topk_distillation_loss(logits, case.labels, case.targets, loss_settings)
    module = FusedLinearTopKDistillationLoss(loss_settings, logit_scale=0.3, logit_softcap=2.0, chunk_rows=5)
    fused = module(head.hidden, wide, case.labels, case.targets)
    expected = torch.autograd.grad(dense.loss, (head.hidden, wide))
    found = torch.autograd.grad(fused.loss, (head.hidden, wide))
    assert fused.loss.item() == pytest.approx(dense.loss.item(), rel=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    assert (found[1][23:] == 0).all()


def test_tied_embedding_gets_both_gradients():
    case = make_case(7)

    def gradient_of(fused: bool) -> Tensor:
        torch.manual_seed(0)
        embedding = nn.Embedding(23, HIDDEN, dtype=torch.float64)
        hidden = torch.tanh(embedding(case.labels.clamp(min=0)))
        if fused:
            output = fused_linear_topk_distillation_loss(
                hidden, embedding.weight, case.labels, case.targets, LossSettings()
            )
        else:
            output = topk_distillation_loss(
                hidden @ embedding.weight.t(), case.labels, case.targets, LossSettings()
            )
        output.loss.backward()
        assert embedding.weight.grad is not None
        return embedding.weight.grad

    torch.testing.assert_close(gradient_of(True), gradient_of(False), rtol=1e-10, atol=1e-13)


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any tensor made under it (not views), and the rows projected."""

    def __init__(self) -> None:
        super().__init__()
        self.numel, self.rows_projected = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        held = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in held:
                self.numel = max(self.numel, tensor.numel())
        if func.overloadpacket is torch.ops.aten.mm and args[0].shape[1] == HIDDEN:
            self.rows_projected += args[0].shape[0]
        return result


@pytest.mark.parametrize("tokens", [65, 257])
def test_logits_of_the_batch_never_exist(tokens):
    """Nothing is larger than a chunk of logits or the weight, whatever the number of tokens."""
    case = make_case(13, tokens=tokens, vocab_size=200, dtype=torch.float32)
    head = Head(case, dtype=torch.float32)
    with LargestTensor() as largest:
        fused_linear_topk_distillation_loss(
            head.hidden, head.weight, case.labels, case.targets, LossSettings(), chunk_rows=8
        ).loss.backward()
    assert largest.numel <= max(8 * 200, 200 * HIDDEN, head.hidden.numel())
    with LargestTensor() as dense:
        logits = functional.linear(head.hidden, head.weight)
        topk_distillation_loss(logits, case.labels, case.targets, LossSettings()).loss.backward()
    assert dense.numel >= 2 * tokens * 200


class HostWaits(TorchDispatchMode):
    """Counts what makes the host wait for a GPU: results that it reads, and numbers that it copies there."""

    KINDS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "lift_fresh", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        if name in self.KINDS:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_waits_for_its_rows_alone(weighted):
    """Before anything is projected; behind the first product the host stays ahead of the GPU."""
    case = make_case(0, batch=2, tokens=9, vocab_size=40, top_k=4)
    head = Head(case)
    weights = torch.ones(case.labels.shape) if weighted else None
    with HostWaits() as waits:
        for loss in (
            lambda: fused_linear_topk_distillation_loss(
                head.hidden,
                head.weight,
                case.labels,
                case.targets,
                LossSettings(temperature=2.0),
                chunk_rows=5,
                label_weights_BT=weights,
            ),
            lambda: topk_distillation_loss(
                head.hidden @ head.weight.t(),
                case.labels,
                case.targets,
                LossSettings(),
                label_weights_BT=weights,
            ),
        ):
            waits.found.clear()
            loss().loss.backward()
            first = waits.found.index("nonzero")
            # And once for the ids' bounds, by tolist(), which does not show on a CPU.
            assert waits.found[first:] == ["nonzero"]


def test_only_rows_that_count_are_projected():
    case = make_case(15, tokens=50, dtype=torch.float32)
    labels = torch.full_like(case.labels, -100)
    labels[:, 40:] = 3
    head = Head(case, dtype=torch.float32)
    with LargestTensor() as largest, torch.no_grad():
        fused_linear_topk_distillation_loss(
            head.hidden, head.weight, labels, case.targets, LossSettings(), chunk_rows=8
        )
    assert largest.rows_projected == 20


def test_frozen_head_makes_no_weight_gradient():
    case = make_case(17, dtype=torch.float32, vocab_size=500, top_k=4)
    head, frozen = Head(case, dtype=torch.float32), Head(case, dtype=torch.float32)
    frozen.weight.requires_grad_(False)
    arguments = (case.labels, case.targets, LossSettings())
    expected = torch.autograd.grad(
        fused_linear_topk_distillation_loss(head.hidden, head.weight, *arguments, chunk_rows=2).loss,
        head.hidden,
    )[0]
    with LargestTensor() as largest:
        output = fused_linear_topk_distillation_loss(frozen.hidden, frozen.weight, *arguments, chunk_rows=2)
        output.loss.backward()
    assert largest.numel < 500 * HIDDEN
    assert frozen.weight.grad is None
    assert frozen.hidden.grad is not None
    torch.testing.assert_close(frozen.hidden.grad, expected)


def test_evaluation_makes_no_gradients():
    case = make_case(19, temperature=2.0)
    head = Head(case)
    loss_settings = LossSettings(temperature=2.0)
    arguments = (head.hidden, head.weight, case.labels, case.targets, loss_settings)
    trained = fused_linear_topk_distillation_loss(*arguments)
    with torch.no_grad():
        evaluated = fused_linear_topk_distillation_loss(*arguments)
    assert evaluated.loss.item() == pytest.approx(trained.loss.item(), rel=1e-14)
    assert not evaluated.loss.requires_grad


def test_without_a_teacher_it_is_fused_cross_entropy():
    case = make_case(21)
    head = Head(case)
    fused = fused_linear_topk_distillation_loss(
        head.hidden, head.weight, case.labels, None, LossSettings(alpha=0.0), chunk_rows=3
    )
    logits = (head.hidden @ head.weight.t())[:, :-1].flatten(0, 1)
    expected = functional.cross_entropy(logits, case.labels[:, 1:].flatten())
    assert fused.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(fused.loss, head.weight), torch.autograd.grad(expected, head.weight)
    )


def test_batch_without_labels_is_zero_with_a_gradient():
    case = make_case(23)
    head = Head(case)
    output = fused_linear_topk_distillation_loss(
        head.hidden, head.weight, torch.full_like(case.labels, -100), case.targets, LossSettings()
    )
    output.loss.backward()
    assert output.loss.item() == 0
    assert head.weight.grad is not None
    assert (head.weight.grad == 0).all()


def test_second_backward_gives_the_same():
    """The gradients kept since the forward pass must not be scaled in place by the first backward."""
    case = make_case(25)
    head = Head(case)
    loss = (
        3
        * fused_linear_topk_distillation_loss(
            head.hidden, head.weight, case.labels, case.targets, LossSettings()
        ).loss
    )
    first = torch.autograd.grad(loss, (head.hidden, head.weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, (head.hidden, head.weight)), first)


def test_items_of_the_whole_step():
    case = make_case(27)
    head = Head(case)
    arguments = (head.hidden, head.weight, case.labels, case.targets, LossSettings())
    own = fused_linear_topk_distillation_loss(*arguments)
    count = int(own.metrics.num_rows)
    for number in (4 * count, torch.tensor(4 * count)):
        step = fused_linear_topk_distillation_loss(*arguments, num_items_in_batch=number)
        assert step.loss.item() == pytest.approx(own.loss.item() / 4, rel=1e-14)
        assert step.distillation.item() == pytest.approx(own.distillation.item() / 4, rel=1e-14)


def test_chunks_without_rows_are_refused():
    case = make_case(35)
    head = Head(case)
    with pytest.raises(ValueError, match="chunk_rows=0 must be at least 1"):
        fused_linear_topk_distillation_loss(
            head.hidden, head.weight, case.labels, case.targets, LossSettings(), chunk_rows=0
        )


@pytest.mark.slow
def test_inside_a_compiled_step(monkeypatch):
    """Whether the kernels work is tried outside the graph: Dynamo would trace the trial, without its cache."""
    traced = []

    def takes_kernels(*_: object) -> bool:
        traced.append(torch.compiler.is_compiling())
        return False

    monkeypatch.setattr(projection, "takes_kernels", takes_kernels)
    case = make_case(29, dtype=torch.float32)
    head = Head(case, dtype=torch.float32)

    def step(hidden: Tensor) -> Tensor:
        return fused_linear_topk_distillation_loss(
            torch.tanh(hidden), head.weight, case.labels, case.targets, LossSettings()
        ).loss

    compiled = torch.compile(step, backend="aot_eager")
    expected = torch.autograd.grad(step(head.hidden), (head.hidden, head.weight))
    found = torch.autograd.grad(compiled(head.hidden), (head.hidden, head.weight))
    torch.testing.assert_close(found, expected)
    assert traced == [False, False]
