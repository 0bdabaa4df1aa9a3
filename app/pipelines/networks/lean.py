"""SDXL-Turbo's networks with fewer operations, for accelerators: the same functions, up to rounding.

At one step an accelerator computes an operation faster than the host can start it. So what counts is the number of
operations, of which diffusers and transformers start twice as many as needed: divisions by 1, a projection of the time
for each of 17 blocks, and of the prompt for each of 70, queries, keys and values one by one, and masks.
"""

from collections.abc import Mapping, Sequence
from itertools import count, pairwise
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit
from transformers.activations import GELUActivation, QuickGELUActivation

from app.pipelines.networks.operators import Operators, keep_address
from app.pipelines.prompts import EncodeText


def make_lean(unet: UNet2DConditionModel, vae: nn.Module, operators: Operators) -> None:
    """Change the UNet and the VAE in place. Weights that are used together are moved together; none is copied.

    Blocks that are not as SDXL's stay as they are.
    """
    for network in (unet, vae):
        for module in list(network.modules()):
            norm, activation = getattr(module, "conv_norm_out", None), getattr(module, "conv_act", None)
            if isinstance(norm, nn.GroupNorm) and isinstance(activation, nn.SiLU):
                module.conv_norm_out = _GroupNormSilu(norm, operators)
                module.conv_act = nn.Identity()
            if isinstance(module, ResnetBlock2D) and is_plain(module):
                module.forward = LeanResnet(module, operators)
            elif isinstance(module, Attention) and _is_pixel_attention(module):
                module.forward = _PixelAttention(module, operators)
    resnets = [module for module in unet.modules() if isinstance(module, ResnetBlock2D)]
    if unet.time_embed_act is None and all(isinstance(resnet.forward, LeanResnet) for resnet in resnets):
        unet.time_embed_act = _TimeProjections([resnet.forward for resnet in resnets])
    transformers = [module for module in unet.modules() if isinstance(module, Transformer2DModel)]
    attentions = sum(isinstance(module, Attention) for module in unet.modules())
    of_transformers = sum(2 * len(transformer.transformer_blocks) for transformer in transformers)
    if (
        transformers
        and all(map(_is_plain_transformer, transformers))
        and attentions == of_transformers  # no other attention reads the prompt
        and unet.encoder_hid_proj is None
    ):
        numbers = count()
        blocks = []
        for transformer in transformers:
            own = [_LeanBlock(block, next(numbers), operators) for block in transformer.transformer_blocks]
            transformer.forward = _LeanTransformer(transformer, own, operators)
            blocks += own
        project = _PromptProjections([block.block.attn2 for block in blocks])
        unet.process_encoder_hidden_states = lambda encoder_hidden_states, **_: project(encoder_hidden_states)


class _GroupNormSilu(nn.Module):
    """A group norm with the SiLU after it."""

    def __init__(self, norm: nn.GroupNorm, operators: Operators) -> None:
        super().__init__()
        self.norm = norm
        self._group_norm_silu = operators.group_norm_silu

    def forward(self, x: Tensor) -> Tensor:
        return self._group_norm_silu(self.norm, x)


def is_plain(block: ResnetBlock2D) -> bool:
    """Tell whether a block is as SDXL has them, so that `LeanResnet` computes the same."""
    return (
        block.upsample is None
        and block.downsample is None
        and (block.time_emb_proj is None or (block.time_embedding_norm == "default" and not block.skip_time_act))
        and block.output_scale_factor == 1
        and isinstance(block.nonlinearity, nn.SiLU)
    )


class LeanResnet:
    """The forward of a ResnetBlock2D without the division by 1, and with its sums in place."""

    def __init__(self, block: ResnetBlock2D, operators: Operators) -> None:
        self.block = block
        self.index: int | None = None
        """Where the block's projection of the time is, if that of all blocks is computed at once."""
        self._group_norm_silu = operators.group_norm_silu

    def __call__(self, input_tensor: Tensor, temb: Any = None) -> Tensor:
        block = self.block
        hidden: Tensor = block.conv1(self._group_norm_silu(block.norm1, input_tensor))
        if temb is not None and block.time_emb_proj is not None:
            time = block.time_emb_proj(F.silu(temb)) if self.index is None else temb[self.index]
            hidden += time[:, :, None, None]
        hidden = block.conv2(self._group_norm_silu(block.norm2, hidden))
        if block.conv_shortcut is not None:
            input_tensor = block.conv_shortcut(input_tensor)
        return hidden.add_(input_tensor)


class _TimeProjections(nn.Module):
    """The projections of the time embedding for all blocks of the UNet, as one Linear."""

    def __init__(self, resnets: Sequence[LeanResnet]) -> None:
        super().__init__()
        linears = [resnet.block.time_emb_proj for resnet in resnets]
        self._sizes = [linear.out_features for linear in linears]
        self.weight = nn.Parameter(torch.cat([linear.weight.detach() for linear in linears]), requires_grad=False)
        self.bias = nn.Parameter(torch.cat([linear.bias.detach() for linear in linears]), requires_grad=False)
        weights, biases = torch.split(self.weight, self._sizes), torch.split(self.bias, self._sizes)
        for index, (resnet, weight, bias) in enumerate(zip(resnets, weights, biases, strict=True)):
            resnet.index = index
            _point_to(linears[index], weight, bias)

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        return torch.split(F.linear(F.silu(embedding), self.weight, self.bias), self._sizes, dim=-1)


class _Projections:
    """Several Linears of the same shape for the same input, as one product: rows to (Linears, rows, features)."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        self.weight = torch.stack([linear.weight.detach() for linear in linears])
        biases: Sequence[Tensor | None] = [linear.bias for linear in linears]
        given = [bias.detach() for bias in biases if bias is not None]
        self.bias = torch.stack(given) if given else None
        keep_address(self.weight)
        if self.bias is not None:
            keep_address(self.bias)
        for index, linear in enumerate(linears):
            _point_to(linear, self.weight[index], None if self.bias is None else self.bias[index])

    def __call__(self, x: Tensor) -> Tensor:
        """Return a tensor of shape (Linears, *x.shape[:-1], features), in which each Linear's part is contiguous.

        A batch of products, not one product with the features side by side: their parts would not be contiguous, and
        on an NPU each operator copies what is not (l0op::Contiguous in CANN's aclnn operators). matmul, not bmm:
        torch_npu's bmm copies the rows for each Linear (BmmKernelNpuOpApi.cpp of Ascend/op-plugin).
        """
        rows = x.reshape(1, -1, x.shape[-1])
        product = torch.matmul(rows, self.weight.transpose(1, 2))
        if self.bias is not None:
            product += self.bias[:, None]
        return product.view(len(self.weight), *x.shape[:-1], -1)


def _point_to(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Let a Linear have its weights inside of larger tensors."""
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)


class _PromptProjections:
    """The keys and values of the prompt for all blocks of the UNet: one product for each width of a block."""

    def __init__(self, attentions: Sequence[Attention]) -> None:
        numbers: dict[int, list[int]] = {}
        for number, attention in enumerate(attentions):
            numbers.setdefault(attention.to_k.out_features, []).append(number)
        self._numbers = list(numbers.values())
        self._projections = [
            _Projections([linear for number in same for linear in (attentions[number].to_k, attentions[number].to_v)])
            for same in self._numbers
        ]

    def __call__(self, prompt: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Return keys and values by the number of the block, each of shape (batch, tokens, width)."""
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for same, projections in zip(self._numbers, self._projections, strict=True):
            parts = projections(prompt).unbind()
            found |= {number: (parts[2 * i], parts[2 * i + 1]) for i, number in enumerate(same)}
        return found


class _LeanBlock:
    """A BasicTransformerBlock. `number` is its place among those of the UNet."""

    def __init__(self, block: BasicTransformerBlock, number: int, operators: Operators) -> None:
        self.block = block
        self._number = number
        self._operators = operators
        own = block.attn1
        self._queries_keys_values = _Projections([own.to_q, own.to_k, own.to_v])

    def __call__(self, x: Tensor, normed: Tensor, prompt: Mapping[int, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Take a sum and its first layer norm, of shape (batch, tokens, width); return the sum, and what to add to it.

        The caller adds: it knows the layer norm that comes next.
        """
        block, operators = self.block, self._operators
        attended = operators.attention(*self._queries_keys_values(normed).unbind(), block.attn1.heads)
        x, normed = operators.add_layer_norm(block.norm2, x, block.attn1.to_out[0](attended))
        keys, values = prompt[self._number]
        attended = operators.attention(block.attn2.to_q(normed), keys, values, block.attn2.heads)
        x, normed = operators.add_layer_norm(block.norm3, x, block.attn2.to_out[0](attended))
        return x, block.ff.net[2](operators.geglu(block.ff.net[0].proj(normed)))


class _LeanTransformer:
    """The forward of a Transformer2DModel: pixels attend to each other and to the prompt."""

    def __init__(self, transformer: Transformer2DModel, blocks: Sequence[_LeanBlock], operators: Operators) -> None:
        self._transformer = transformer
        self._blocks = blocks
        self._add_layer_norm = operators.add_layer_norm

    def __call__(self, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> tuple[Tensor]:
        transformer = self._transformer
        batch, _channels, height, width = hidden_states.shape
        normed = transformer.norm(hidden_states).permute(0, 2, 3, 1).reshape(batch, height * width, -1)
        x = transformer.proj_in(normed)
        normed = self._blocks[0].block.norm1(x)
        for block, following in zip(self._blocks, [*self._blocks[1:], None], strict=True):
            x, added = block(x, normed, encoder_hidden_states)
            if following is None:
                x = x + added
            else:
                x, normed = self._add_layer_norm(following.block.norm1, x, added)
        result: Tensor = transformer.proj_out(x).view(batch, height, width, -1).permute(0, 3, 1, 2)
        return (result + hidden_states,)


def _is_plain_transformer(transformer: Transformer2DModel) -> bool:
    return (
        transformer.is_input_continuous
        and transformer.use_linear_projection
        and all(
            block.norm_type == "layer_norm"
            and block.pos_embed is None
            and not block.only_cross_attention
            and isinstance(block.ff.net[0], GEGLU)
            and all(map(_is_plain_attention, (block.attn1, block.attn2)))
            for block in transformer.transformer_blocks
        )
    )


def _is_plain_attention(attention: Attention | None) -> bool:
    return (
        attention is not None
        and attention.spatial_norm is attention.norm_q is attention.norm_k is None
        and attention.norm_cross is None
        and attention.rescale_output_factor == 1
        and attention.to_k.weight.shape == attention.to_v.weight.shape
    )


class _PixelAttention:
    """The forward of the VAE's Attention, with its own group norm, over all pixels."""

    def __init__(self, attention: Attention, operators: Operators) -> None:
        self._attention = attention
        self._operators = operators
        self._queries_keys_values = _Projections([attention.to_q, attention.to_k, attention.to_v])

    def __call__(self, hidden_states: Tensor, **_: Any) -> Tensor:
        attention = self._attention
        batch, channels, height, width = hidden_states.shape
        x = attention.group_norm(hidden_states).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        attended = self._operators.attention(*self._queries_keys_values(x).unbind(), attention.heads)
        result: Tensor = attention.to_out[0](attended).view(batch, height, width, channels).permute(0, 3, 1, 2)
        return result + hidden_states


def _is_pixel_attention(attention: Attention) -> bool:
    return attention.group_norm is not None and attention.residual_connection and _is_plain_attention(attention)


def lean_text_encoding(encoder: Any, operators: Operators, *, pooled: bool) -> EncodeText:
    """Return the function of a text encoder of CLIP, without what SDXL does not read, and without masks.

    SDXL reads the last state but one. If not `pooled`, the last layer is left out, and the second result is empty.
    """
    clip = getattr(encoder, "text_model", encoder)
    layers = [_LeanTextLayer(layer, operators) for layer in clip.encoder.layers]
    end_id = clip.eos_token_id

    def encode(ids: Tensor) -> tuple[Tensor, Tensor]:
        x = clip.embeddings.token_embedding(ids) + clip.embeddings.position_embedding.weight[: ids.shape[1]]
        normed = layers[0].layer.layer_norm1(x)
        for layer, following in pairwise(layers):
            x, added = layer(x, normed)
            x, normed = operators.add_layer_norm(following.layer.layer_norm1, x, added)
        if not pooled:
            return x, x[:, :0]
        total, added = layers[-1](x, normed)
        _, final = operators.add_layer_norm(clip.final_layer_norm, total, added)
        # The end mark has the largest id. Configs with an id of 2 are older than it (transformers#24773).
        marks = ids if end_id == _OLD_END_ID else (ids == end_id).int()
        ends = marks.argmax(dim=-1)
        of_ends = final.gather(1, ends[:, None, None].expand(-1, 1, final.shape[-1]))[:, 0]
        return x, encoder.text_projection(of_ends)

    return encode


_OLD_END_ID = 2


class _LeanTextLayer:
    """A layer of a text encoder of CLIP, where a token attends to those before it."""

    def __init__(self, layer: Any, operators: Operators) -> None:
        self.layer = layer
        self._operators = operators
        own = layer.self_attn
        self._queries_keys_values = _Projections([own.q_proj, own.k_proj, own.v_proj])
        by_kind = {QuickGELUActivation: operators.quick_gelu, GELUActivation: operators.gelu}
        self._activation = by_kind.get(type(layer.mlp.activation_fn), layer.mlp.activation_fn)

    def __call__(self, x: Tensor, normed: Tensor) -> tuple[Tensor, Tensor]:
        """As `_LeanBlock`."""
        layer, operators = self.layer, self._operators
        heads = layer.self_attn.num_heads
        attended = operators.attention(*self._queries_keys_values(normed).unbind(), heads, is_causal=True)
        x, normed = operators.add_layer_norm(layer.layer_norm2, x, layer.self_attn.out_proj(attended))
        return x, layer.mlp.fc2(self._activation(layer.mlp.fc1(normed)))
