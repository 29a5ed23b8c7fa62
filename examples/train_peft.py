"""Train LoRA factors on a model with PEFT, and merge them: train_peft.py OUTPUT."""

import torch
from chats import CHATS, PASSAGES, QUESTION, options
from peft import LoraConfig, get_peft_model

import octavo

model = octavo.load(options.model)
config = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "fc1", "fc2"], task_type="CAUSAL_LM")
adapted = get_peft_model(model.lclm, config)  # both halves and the adapter
adapted.train()
collate = octavo.ChatCollator(model.prompts)
optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=1e-3)
for step in range(options.steps):
    batch = collate([CHATS[step % len(CHATS)]])
    loss = adapted(**{name: tensor.to(adapted.device) for name, tensor in batch.items()}).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step + 1}: loss {loss.item():.3f}")

adapted.merge_and_unload().save_pretrained(f"{options.output}/model")  # with its tokenizers
trained = octavo.load(f"{options.output}/model")
print(trained.generate(QUESTION, trained.compress(PASSAGES[0]), max_new_tokens=40).text)
