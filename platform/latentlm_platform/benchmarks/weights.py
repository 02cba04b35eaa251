"""The weights of a peer in the names and layouts of ours, so that both compute the same function.

Ours keeps query, key and value as one matrix, gate and up as one, and the modulations of all head
blocks as one; transformers keeps them apart. Norms with a scale and half-split rotary pairs are
`norm="learned"` and `rotary="llama"` of `LatentLMSettings`.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


def draw_weights(module: nn.Module) -> None:
    """Random weights that a gate can see: matrices keep variance, scales lie around 1, no biases.

    As built, transformers' weights are so small that a wrong layer hardly changes the output.
    """
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)


def backbone_weights(layers: Iterable[nn.Module]) -> Weights:
    """Llama's or Qwen2's decoder layers → `backbone.*`. Biases must be zero: ours has none."""
    weights: Weights = {}
    for index, layer in enumerate(layers):
        own = _own(layer)
        prefix = f"backbone.layers.{index}"
        for name, bias in own.items():
            if name.endswith("bias") and bias.any():
                raise ValueError(f"layer {index} of the peer has a {name}; zero it first")
        attention = [own[f"self_attn.{part}_proj.weight"] for part in "qkv"]
        weights |= {
            f"{prefix}.attention_norm.weight": own["input_layernorm.weight"],
            f"{prefix}.attention.query_key_value.weight": torch.cat(attention),
            f"{prefix}.attention.output.weight": own["self_attn.o_proj.weight"],
            f"{prefix}.feedforward_norm.weight": own["post_attention_layernorm.weight"],
            f"{prefix}.feedforward.gate_and_up.weight": torch.cat(
                (own["mlp.gate_proj.weight"], own["mlp.up_proj.weight"])
            ),
            f"{prefix}.feedforward.down.weight": own["mlp.down_proj.weight"],
        }
    return weights


def head_weights(head: nn.Module) -> Weights:
    """VibeVoice's diffusion head → `head.*` without `condition_norm`, which is the LM's last norm
    there."""
    own = _own(head)
    depth = len({name.split(".")[1] for name in own if name.startswith("layers.")})
    modulations = [own[f"layers.{i}.linear.weight"] for i in range(depth)]
    weights = {
        "head.condition_projection.weight": own["cond_proj.weight"],
        "head.timestep_network.0.weight": own["timestep_proj.fc1.weight"],
        "head.timestep_network.2.weight": own["timestep_proj.fc2.weight"],
        "head.noisy_projection.weight": own["noisy_images_proj.weight"],
        "head.modulation.weight": torch.cat((*modulations, own["final_layer.linear_1.weight"])),
        "head.output.weight": own["final_layer.linear_2.weight"],
    }
    for index in range(depth):
        theirs, ours = f"layers.{index}", f"head.blocks.{index}"
        gate_and_up = (own[f"{theirs}.ffn.{part}_proj.weight"] for part in ("gate", "up"))
        weights |= {
            f"{ours}.norm.weight": own[f"{theirs}.norm.weight"],
            f"{ours}.feedforward.gate_and_up.weight": torch.cat(tuple(gate_and_up)),
            f"{ours}.feedforward.down.weight": own[f"{theirs}.ffn.down_proj.weight"],
        }
    return weights


def speech_decoder_weights(decoder: nn.Module) -> Weights:
    """VibeVoice's acoustic decoder → the weights of `SpeechConvCodec.decoder`."""
    flat: list[Weights] = [_conv(_own(decoder.get_submodule("stem.conv.conv")))]
    flat += [_block(_own(block)) for block in decoder.get_submodule("stem.stage").children()]
    for stage in decoder.get_submodule("conv_layers").children():
        flat.append(_upsampling(_own(stage.get_submodule("convtr.convtr"))))
        flat += [_block(_own(block)) for block in stage.get_submodule("stage").children()]
    flat.append(_conv(_own(decoder.get_submodule("head.conv"))))
    return {
        f"layers.{index}.{name}": tensor
        for index, layer in enumerate(flat)
        for name, tensor in layer.items()
    }


def _own(module: nn.Module) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


def _conv(own: Weights) -> Weights:
    """(outputs, inputs, kernel) → (outputs, kernel, inputs)."""
    return {"weight": own["weight"].transpose(1, 2), "bias": own["bias"]}


def _upsampling(own: Weights) -> Weights:
    """(inputs, outputs, 2 · stride) → (inputs, 2, stride, outputs)."""
    weight = own["weight"].unflatten(2, (2, -1)).permute(0, 2, 3, 1)
    return {"weight": weight, "bias": own["bias"]}


def _block(own: Weights) -> Weights:
    return {
        "conv_norm.weight": own["norm.weight"],
        "conv.weight": own["mixer.conv.weight"].unsqueeze(2),
        "conv.bias": own["mixer.conv.bias"],
        "conv_scale": own["gamma"],
        "ffn_norm.weight": own["ffn_norm.weight"],
        "ffn_in.weight": own["ffn.linear1.weight"].T,
        "ffn_in.bias": own["ffn.linear1.bias"],
        "ffn_out.weight": own["ffn.linear2.weight"],
        "ffn_out.bias": own["ffn.linear2.bias"],
        "ffn_scale": own["ffn_gamma"],
    }
