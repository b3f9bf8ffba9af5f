# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's ``Trainer`` and TRL's ``SFTTrainer``: a class that prunes, made by a mixin."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

import prune_engine as pe
from prune_engine.data.dataset import INDEX_KEY
from prune_engine.integrations.packages import need
from prune_engine.losses.reducers import Tokens
from prune_engine.policies import Policy
from prune_engine.schedule import ProgressOf, VirtualScheduler

_transformers: Any = need("transformers", "huggingface")
_Callback: Any = _transformers.TrainerCallback

FILE = "prune_engine.pt"  # beside the model, in each checkpoint's folder
__all__ = ["IndexCollator", "PruneMixin", "sample_losses"]


def sample_losses(outputs: Any, labels: Tensor, *, shift: bool) -> tuple[Tensor, Tensor | None]:
    """Return a batch's losses, not reduced, from a model's outputs and its labels.

    Cross-entropy of [B, T, C] against [B, T] per token (label -100 is ignored) and of [B, C]
    against [B]; binary cross-entropy, a mean over classes, against floating [B, C]; the squared
    error of [B, 1] against [B]. TRL's ``log_probs`` are taken as they are.

    Args:
        outputs: of the model, with ``logits`` or ``log_probs`` and ``label_mask``.
        labels: as the model takes them.
        shift: whether token t is predicted at t - 1 (a causal language model).

    Returns:
        Losses [B, T] with a mask, or [B] and None.

    Raises:
        ValueError: outputs and labels are of none of these kinds.

    Example:
        >>> from types import SimpleNamespace
        >>> outputs = SimpleNamespace(logits=torch.zeros(2, 3, 4))
        >>> labels = torch.tensor([[0, 1, -100], [2, 3, 1]])
        >>> losses, mask = sample_losses(outputs, labels, shift=True)
        >>> losses.shape, mask.tolist()
        (torch.Size([2, 2]), [[True, False], [True, True]])
    """
    log_probs = getattr(outputs, "log_probs", None)
    if log_probs is not None:
        return -log_probs, outputs.label_mask
    logits = getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor):
        raise ValueError("outputs must have logits to score samples by; override sample_losses")
    logits = logits.float()
    if logits.dim() == 3 and labels.dim() == 2:
        if shift:
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        return losses, labels != -100
    if logits.dim() == 2 and labels.dim() == 1 and not labels.is_floating_point():
        return F.cross_entropy(logits, labels, reduction="none"), None
    if logits.shape == labels.shape and logits.dim() == 2:
        losses = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
        return losses.mean(1), None
    if logits.dim() == 2 and logits.shape[1] == 1 and labels.dim() == 1:
        return F.mse_loss(logits[:, 0], labels.float(), reduction="none"), None
    raise ValueError(
        f"outputs and labels must give a loss per sample, got logits {tuple(logits.shape)} and "
        f"labels {tuple(labels.shape)}: override sample_losses"
    )


class IndexCollator:
    """Take the index out of each item before a collator sees it, and put it into the batch.

    Args:
        collate: from a list of items to a batch with a row for each.

    Example:
        >>> collate = IndexCollator(lambda items: {"x": torch.tensor([i["x"] for i in items])})
        >>> collate([{"x": 3, "sample_index": 7}])
        {'x': tensor([3]), 'sample_index': tensor([7])}
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[Any]) -> Any:
        """Return the batch, with the indices of its rows."""
        for item in items:
            if not isinstance(item, Mapping):
                raise TypeError(f"items must be mappings, got {type(item).__name__}")
        indices = [item[INDEX_KEY] for item in items]
        rows = [{name: item[name] for name in item if name != INDEX_KEY} for item in items]
        batch = self.collate(rows)
        sizes = {
            value.shape[0] for value in batch.values() if isinstance(value, Tensor) and value.dim()
        }
        if sizes and len(indices) not in sizes:
            raise pe.PruneEngineError(
                f"the collator made {sorted(sizes)} rows of {len(indices)} items: pack before the "
                "training, so that a row is a sample (TRL: packing_strategy='wrapped')"
            )
        batch[INDEX_KEY] = torch.tensor(indices)
        return batch


class _Nominal:
    """The share of the optimizer steps asked for that is done, as if nothing were pruned."""

    def __init__(self, engine: Any, steps_of_all: int, wanted: int) -> None:
        self.engine, self.steps_of_all, self.wanted = engine, steps_of_all, wanted

    @property
    def progress(self) -> float:
        return min(1.0, self.engine.progress * self.steps_of_all / self.wanted)

    @property
    def done(self) -> bool:
        return round(self.progress * self.wanted) >= self.wanted


class _Captured:
    """A model whose last outputs are kept, for a loss that another class computes from them."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.outputs: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.outputs = self.model(*args, **kwargs)
        return self.outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


class _Flow(_Callback):
    """Tells the Trainer how many steps are left, saves the engine, ends the last epoch.

    It comes before the Trainer's own callbacks, which stop, save and draw by ``max_steps``.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._count(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._count(state)
        for callback in self.trainer.callback_handler.callbacks:
            bar = getattr(callback, "training_bar", None)
            if bar is not None:
                bar.total = state.max_steps

    def _count(self, state: Any) -> None:
        """Bound the steps of the run by what this epoch has left and whole epochs after it."""
        trainer, engine = self.trainer, self.trainer.engine
        if engine.done or (trainer.args.max_steps > 0 and trainer.nominal.done):
            state.max_steps = state.global_step
            return
        left = math.ceil((engine.served - engine.cursor) / trainer.samples_per_step)
        left += (engine.num_epochs - engine.epoch - 1) * trainer.steps_per_epoch
        state.max_steps = min(state.global_step + left, trainer.nominal.wanted)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        pe.save_state(self.trainer.engine, folder / FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        engine = self.trainer.engine
        if not engine.done and engine.cursor:
            engine.end_epoch(partial=True)


class PruneMixin:
    """Make a Trainer prune: ``class T(PruneMixin, Trainer)``, or ``SFTTrainer`` in its place.

    An epoch of the Trainer stays as long as the data set, and pruning epochs flow through it
    (``mode="flow"``): so accumulation, checkpoints, evaluation and resuming count as they always
    do, and the run stops when ``num_train_epochs`` pruning epochs are trained. ``state.max_steps``
    is at each step the most that the run can take; the learning rate passes through its whole
    curve. With ``max_steps`` the run is so many steps of unpruned work.

    The engine is made by ``train()`` and is ``trainer.engine``; each checkpoint has its state.

    Args:
        args: of the Trainer.
        prune: a policy, such as ``InfoBatch()``; N is the length of the prepared data set.
        prune_options: further arguments of ``PruneEngine``: ``seed`` (default: the Trainer's),
            ``horizon``, ``on_nonfinite``, ``coverage``, ``backend``.
        kwargs: of the Trainer.

    Raises:
        TypeError: ``prune`` is no policy.
        ValueError: the Trainer is to do what pruning cannot serve; the message says what instead.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
        >>> class T(PruneMixin, Trainer): ...
        >>> small = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=4, n_layer=1, n_head=1))
        >>> rows = [{"input_ids": [1, 2], "labels": [1, 2]}] * 8
        >>> args = TrainingArguments("run", num_train_epochs=2, use_cpu=True, report_to=[])
        >>> T(small, args, train_dataset=rows, prune=pe.KeepAll()).engine.num_epochs
        2
    """

    def __init__(
        self,
        *args: Any,
        prune: Policy,
        prune_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(prune, Policy):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"prune must be a policy, such as InfoBatch(), got {prune!r}")
        super().__init__(*args, **kwargs)
        self.prune = prune
        self.prune_options = dict(prune_options or {})
        self._engine: pe.PruneEngine | None = None
        self._reported = 0
        self._compared = False
        _refuse(self)
        self._trainer.callback_handler.callbacks.insert(0, _Flow(self))

    @property
    def _trainer(self) -> Any:
        """This object as the Trainer that it is as well."""
        return self

    @property
    def engine(self) -> pe.PruneEngine:
        """The engine of the current run, made when it is first asked for."""
        if self._engine is None:
            self._engine = self._make_engine()
            self._reported = 0
        return self._engine

    def _make_engine(self) -> pe.PruneEngine:
        trainer, args = self._trainer, self._trainer.args
        seed = args.seed if args.data_seed is None else args.data_seed
        options = {"seed": seed, "device": args.device, **self.prune_options}
        if args.max_steps > 0:
            num_epochs = math.ceil(int(args.max_steps) / self.steps_per_epoch)
        else:
            num_epochs = int(args.num_train_epochs)
        return pe.PruneEngine(
            trainer.train_dataset, self.prune, mode="flow", num_epochs=num_epochs, **options
        )

    @property
    def samples_per_step(self) -> int:
        """Samples of one optimizer step, of all ranks."""
        return int(self._trainer.get_total_train_batch_size(self._trainer.args))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch of which nothing is pruned."""
        return max(1, len(self._trainer.train_dataset) // self.samples_per_step)

    @property
    def nominal(self) -> _Nominal:
        """Says how much of the work that was asked for is done."""
        engine, limit = self.engine, self._trainer.args.max_steps
        steps = cast(int, engine.num_epochs) * self.steps_per_epoch
        return _Nominal(engine, steps, limit if limit > 0 else steps)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train with a new engine, or with that of a checkpoint, as the Trainer's ``train`` does.

        Args:
            resume_from_checkpoint: a folder, or True for the last one.
            args: of the Trainer.
            kwargs: of the Trainer.

        Returns:
            What the Trainer returns.

        Raises:
            ValueError: it is a trial of a search, or the Trainer was changed to what is refused.
            FileNotFoundError: the checkpoint has no state of an engine.
            StateMismatchError: it is of another run.
        """
        _refuse(self)
        if kwargs.get("trial") is not None or (args and args[0] is not None):
            raise ValueError("trial must be None: search with a Trainer for each trial")
        self._engine = None
        if resume_from_checkpoint:
            folder = resume_from_checkpoint
            if folder is True:
                last: Any = need("transformers.trainer_utils", "huggingface").get_last_checkpoint
                folder = last(self._trainer.args.output_dir)
            if folder is not None:  # else the Trainer says that there is none
                self._load(Path(str(folder)) / FILE)
        return cast(Any, super()).train(resume_from_checkpoint, *args, **kwargs)

    def _load(self, file: Path) -> None:
        if not file.is_file():
            raise FileNotFoundError(
                f"{file.parent} has no {FILE}: it was saved by a Trainer that does not prune, or "
                "while it was being written; resume from another checkpoint"
            )
        pe.load_state(self.engine, file)
        self._reported = len(self.engine.history)

    # What the Trainer asks for ----------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """Return the Trainer's own loader, over the data set with its positions."""
        trainer = self._trainer
        dataset, collate = trainer.train_dataset, trainer.data_collator
        trainer.train_dataset = self.engine.dataset(dataset)
        trainer.data_collator = IndexCollator(collate)
        try:
            return cast(Any, super()).get_train_dataloader()
        finally:
            trainer.train_dataset, trainer.data_collator = dataset, collate

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Return the engine's order; Accelerate deals its batches out to the ranks."""
        options: Any = self._trainer.args
        return self.engine.sampler(
            shard="none",
            batch_size=options.train_batch_size,
            accumulate=options.gradient_accumulation_steps,
            resume="rest" if options.ignore_data_skip else "replay",
        )

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the positions among what the collator gets."""
        cast(Any, super())._set_signature_columns_if_needed()
        columns = self._trainer._signature_columns
        if INDEX_KEY not in columns:
            columns.append(INDEX_KEY)

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        """Return the Trainer's scheduler, stepped by the progress through the data."""
        made = cast(Any, super()).create_scheduler(num_training_steps, *args, **kwargs)
        if isinstance(made, ReduceLROnPlateau) or type(made).__name__ == "GreedyLR":
            return made
        inner = made.scheduler if isinstance(made, VirtualScheduler) else made
        wrapped = VirtualScheduler(inner, num_training_steps, ProgressOf(self.nominal))
        self._trainer.lr_scheduler = wrapped
        return wrapped

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log what the Trainer logs, and each pruning epoch once when it has ended."""
        if self._engine is not None and len(self._engine.history) > self._reported:
            if not any(name.startswith("eval_") for name in logs):
                self._reported = len(self._engine.history)
                logs.update(self._engine.metrics())
        cast(Any, super()).log(logs, *args, **kwargs)

    # The loss ---------------------------------------------------------------------------------

    def sample_losses(self, outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return a batch's losses, not reduced: override it where a model has others.

        Args:
            outputs: of the model.
            labels: of the batch.

        Returns:
            Losses per token [B, T] with a mask, or per sample [B] and None.
        """
        model: Any = self._trainer.accelerator.unwrap_model(self._trainer.model)
        shift = getattr(model, "loss_function", None) is _causal_loss()
        decodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        return sample_losses(outputs, labels, shift=shift and not decodes)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the weighted loss of a training batch; in an evaluation, the Trainer's own.

        Args:
            model: that is called.
            inputs: the batch, with its positions.
            return_outputs: whether to return the outputs too.
            num_items_in_batch: tokens of the optimizer step, as the Trainer counts them.

        Returns:
            The loss, or (loss, outputs).

        Raises:
            PruneEngineError: the batch of a training step has no positions.
            ValueError: it has no labels.
        """
        indices = inputs.pop(INDEX_KEY, None)
        stock: Any = cast(Any, super()).compute_loss
        if not model.training:
            return stock(model, inputs, return_outputs, num_items_in_batch)
        if indices is None:
            raise pe.PruneEngineError(
                f"the batch has no {INDEX_KEY}: a get_train_dataloader of your own must wrap its "
                "data set by engine.dataset(...) and its collator by IndexCollator(...)"
            )
        labels = inputs.get("labels")
        if labels is None:
            raise ValueError("the batch must have labels, from which samples are scored")
        if getattr(stock, "__func__", None) is _transformers.Trainer.compute_loss:
            if not self._compared:
                self._compare(model, inputs, labels)
            decodes = getattr(self._trainer.model.config, "is_encoder_decoder", False)
            given = {name: value for name, value in inputs.items() if decodes or name != "labels"}
            outputs = model(**given)
        else:  # another class has metrics of its own to compute; its loss is not trained
            captured = _Captured(model)
            stock(captured, inputs, False, num_items_in_batch)
            outputs = captured.outputs
        losses, mask = self.sample_losses(outputs, labels)
        loss = self._weighted(losses, mask, indices, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _compare(self, model: Any, inputs: dict[str, Any], labels: Tensor) -> None:
        """Refuse a model whose own loss is not the mean of the losses that samples are scored by.

        Once for a run, in evaluation mode, where nothing is drawn and nothing moves.
        """
        self._compared = True
        model.eval()
        with torch.no_grad():
            outputs = model(**inputs)
        model.train()
        own = getattr(outputs, "loss", None)
        if own is None:
            return
        losses, mask = self.sample_losses(outputs, labels)
        mean = losses.mean() if mask is None else losses[mask].mean()
        if not torch.allclose(own.float(), mean.float(), rtol=0.01, atol=1e-3, equal_nan=True):
            raise pe.PruneEngineError(
                f"the model's own loss is {own.item():.4f}, and the mean of the losses that "
                f"samples would be scored by is {mean.item():.4f}: override sample_losses to "
                "return the losses that the model means"
            )

    def _weighted(self, losses: Tensor, mask: Tensor | None, indices: Tensor, items: Any) -> Tensor:
        """Observe a batch; divide as ``training_step`` expects it of a model's own loss."""
        trainer, engine = self._trainer, self.engine
        counted = trainer.model_accepts_loss_kwargs and items is not None
        if mask is None:
            loss = engine.observe(losses, indices)
            # The Trainer takes the loss for a part of the step's, and does not divide it.
            return loss / trainer.current_gradient_accumulation_steps if counted else loss
        if not counted:
            return engine.observe(losses, indices, reducer=Tokens(mask))
        loss = engine.observe(losses, indices, reducer=Tokens(mask), denom=items)
        if trainer.args.average_tokens_across_devices:
            loss = loss * trainer.accelerator.num_processes
        return loss


def _causal_loss() -> Any:
    """Return the loss that shifts labels, of which models name their own."""
    return need("transformers.loss.loss_utils", "huggingface").ForCausalLMLoss


def _refuse(trainer: Any) -> None:
    """Refuse at the start what would go wrong later, most of it without a word."""
    args, policy = trainer.args, trainer.prune
    accelerator = args.accelerator_config
    whole = args.max_steps > 0 or float(args.num_train_epochs).is_integer()
    parts = trainer.get_tp_size() * trainer.get_cp_size() * trainer.get_sp_size()
    reasons = {
        "train_dataset must have a length: a stream has no positions to draw from": (
            trainer.train_dataset is not None and not hasattr(trainer.train_dataset, "__len__")
        ),
        f"{type(policy).__name__} keeps batches together, which a Trainer takes apart: write the "
        "loop yourself": policy.fixed_batch is not None,
        "num_train_epochs must be a whole number, of pruning epochs": not whole,
        f"train_sampling_strategy={args.train_sampling_strategy!r} decides the order, which is the "
        "engine's: leave it 'random'": args.train_sampling_strategy != "random",
        "dispatch_batches=True hides from the ranks what they train: leave it unset": (
            accelerator.dispatch_batches
        ),
        "split_batches=True changes what a batch is: set per_device_train_batch_size": (
            accelerator.split_batches
        ),
        "use_stateful_dataloader=True would skip a second time: the engine knows where it was": (
            getattr(accelerator, "use_stateful_dataloader", False)
        ),
        "auto_find_batch_size=True begins an epoch anew that was scored in part: set "
        "per_device_train_batch_size": args.auto_find_batch_size,
        "DataParallel (several GPUs in one process) averages losses: start one process for each "
        "GPU, with torchrun": args.n_gpu > 1,
        "ranks that share a batch (tensor, context or sequence parallel) are not supported": (
            parts > 1
        ),
        "label_smoothing_factor is the Trainer's own loss: override sample_losses instead": (
            args.label_smoothing_factor != 0
        ),
        "compute_loss_func sees no single sample: override sample_losses instead": (
            trainer.compute_loss_func is not None
        ),
        "padding_free puts several samples into one row (packing_strategy 'bfd' does too): take "
        "packing_strategy='wrapped', or no packing": getattr(trainer, "padding_free", False),
        "loss_type must be 'nll': others weigh tokens themselves": (
            getattr(args, "loss_type", "nll") != "nll"
        ),
        "a router's auxiliary loss has no single sample: set output_router_logits=False": (
            getattr(trainer, "aux_loss_enabled", False)
        ),
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise ValueError(reason)
