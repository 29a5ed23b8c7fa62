"""Train a model with TRL's SFTTrainer, spans included: train_trl.py OUTPUT."""

import torch
from chats import CHATS, PASSAGES, QUESTION, options
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import octavo

model = octavo.load(options.model)
arguments = SFTConfig(
    output_dir=f"{options.output}/steps",
    max_steps=options.steps,
    learning_rate=5e-5,
    per_device_train_batch_size=2,
    dataset_kwargs={"skip_prepare_dataset": True},  # the collator tokenises
    remove_unused_columns=False,  # or the chats would not reach it
    bf16=torch.cuda.is_available(),  # on by default, which a CPU refuses
    save_strategy="no",
    logging_steps=1,
    report_to=[],
)
SFTTrainer(
    model.lclm,
    arguments,
    data_collator=octavo.ChatCollator(model.prompts),
    train_dataset=Dataset.from_list(CHATS),
    processing_class=model.prompts.decoder_tokenizer,
).train()

model.lclm.save_pretrained(f"{options.output}/model")  # with its tokenizers
trained = octavo.load(f"{options.output}/model")
print(trained.generate(QUESTION, trained.compress(PASSAGES[0]), max_new_tokens=40).text)
