"""Liger's layer kernels: where they are refused, what they replace, and on a GPU that outputs stay."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from harness import make_trainer, tiny_model
from srpo_trl.seams.liger import check_liger_layers


def test_refused_where_they_cannot_run(tmp_path):
    with pytest.raises(ValueError, match="do not run on 'cpu'"):
        make_trainer(tmp_path, liger_layers=True)
    model = tiny_model()
    model.config.model_type = "unheard_of"
    with pytest.raises(ValueError, match="no kernels for 'unheard_of'"):
        check_liger_layers(model, torch.device("cuda"))


def run(script):
    """In a process of its own: Liger patches the architecture's module for good."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1] / 'support')!r})\n"
        + textwrap.dedent(script)
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_layers_are_replaced_and_the_fused_head_stays():
    run("""
        from harness import tiny_model
        from liger_kernel.ops import LigerRMSNormFunction
        from srpo_trl.seams.liger import apply_liger_layers
        from srpo_trl.loss.student import add_distillation_head
        model = tiny_model()
        add_distillation_head(model)
        head, before = model.forward, {n: p.clone() for n, p in model.named_parameters()}
        apply_liger_layers(model)
        assert model.forward == head
        assert all((p == before[n]).all() for n, p in model.named_parameters())
        layer = model.model.layers[0]
        for module in (layer.mlp, layer.input_layernorm, layer.self_attn.q_norm, model.model.norm):
            assert "liger" in module.forward.__func__.__module__, module
    """)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Liger's kernels need a GPU")
@pytest.mark.parametrize("family", ["Qwen3", "Llama", "Gemma3Text", "Mistral"])
def test_outputs_stay_within_bfloat16(family):
    run(f"""
        import torch, transformers
        from srpo_trl.seams.liger import apply_liger_layers
        config_class = getattr(transformers, "{family}Config")
        name = "Gemma3ForCausalLM" if "{family}" == "Gemma3Text" else "{family}ForCausalLM"
        config = config_class(vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=4,
                              num_attention_heads=4, num_key_value_heads=2, head_dim=64, pad_token_id=0)
        torch.manual_seed(0)
        model = getattr(transformers, name)(config).to("cuda", torch.bfloat16).eval()
        ids = torch.randint(1, 512, (4, 128), device="cuda")
        with torch.no_grad():
            before = model(ids).logits.float()
            exact = model.float()(ids).logits
            apply_liger_layers(model.bfloat16())
            after = model(ids).logits.float()
        rounding = (before - exact).abs().max()
        assert (after - exact).abs().max() <= 2 * rounding, ((after - exact).abs().max(), rounding)
    """)
