"""What a reader must know before comparing the study with the paper's Table 6."""

from typing import Any

from examples.finetune.config import Config as EncoderConfig

ALIGNED_TOO = "; the encoders are aligned on those of the training split as well"


def differences(report: dict[str, Any]) -> str:
    """Everything a reader must know before comparing with the paper's Table 6."""
    options = report["options"]
    epochs = ", ".join(map(str, options["stage_epochs"]))
    lines = [
        "Emoji and two tasks instead of 5.8 million products and three; no number here is "
        "comparable with one there.",
        f"The encoders are {encoder_text(options)}.",
        f"Epochs of the stages {epochs} instead of 20 each, learning rate {options['lr']:g} "
        f"({options['encoder_lr']:g} for the encoders) instead of 1e-5, "
        f"{options['batch_size'] * options['pairs_per_instance']} pairs in a batch instead of "
        "1024: the paper's rate would not move new weights in so few steps.",
        "The end-to-end stage adds the contrastive term that the paper leaves to future work "
        f"(weight {options['contrastive_weight']:g}, {options['pairs_per_instance']} images and "
        "captions of every emoji in a batch, this package's multifold loss).",
        "Noise is injected; the paper's was in its data, as titles that do not name the attribute.",
        "Without modality-wise attention both modalities weigh 1/2; without sequence-wise "
        "attention the encoders' class tokens are fused. The paper does not say what it did.",
        "The best checkpoint has the highest validation accuracy (the paper writes lowest), and "
        "the tuning stage trains the modality-wise attention (as section 4.2.2 says, unlike "
        "Algorithm 1).",
        "Recall at a precision uses one threshold for all classes of a task, chosen on the test "
        "pairs themselves; the paper does not define it.",
        f"Emoji of subcategories with fewer than {options['min_instances']} emoji have no label "
        f"and are in no pair{ALIGNED_TOO if options['alignment_epochs'] else ''}.",
        "Choices of this code: a segment embedding, and a LayerNorm behind a "
        "projection to the transformer's width where the encoders have another, at the "
        "transformer's input; pre-norm layers with GELU; one hidden layer in a head, with dropout "
        f"{options['dropout']:g}.",
        "Every stage has a fresh Adam, and its start counts as a checkpoint. An epoch is "
        f"{options['pairs_per_instance']} random pairs of every emoji.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def encoder_text(options: dict[str, Any]) -> str:
    """Describe the encoders."""
    epochs, whole = options["alignment_epochs"], options["unfreeze"] == "all"
    aligned = (
        f"aligned for {epochs} epochs by `examples.finetune` on the clean training split"
        if epochs
        else "not aligned"
    )
    if options["model"] != "packaged":
        released = "all of it" if whole else "the last block and the projection of each tower"
        return (
            f"open_clip's {options['model']} ({options['pretrained'] or 'random weights'}), "
            f"{aligned}. The end-to-end stage releases {released}. The temperature of the "
            f"contrastive loss starts at examples.finetune's {EncoderConfig.temperature:g}, "
            "whatever the weights came with"
        )
    return (
        f"EfficientNet-Lite0 at {options['image_size']} px (cells of its last feature map as "
        f"patches) and MiniLM (its hidden states as tokens), {aligned}, "
        "instead of OpenAI's ViT-B/32 CLIP; neither has a class token, their pooled features "
        f"stand for it. The end-to-end stage releases "
        f"{'all of both' if whole else 'the last block of each, and the projections'}"
    )
