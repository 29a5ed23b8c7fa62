"""Train every weight of a model with Hugging Face's Trainer: train_trainer.py OUTPUT."""

from chats import CHATS, PASSAGES, QUESTION, options
from transformers import Trainer, TrainingArguments

import octavo

model = octavo.load(options.model)
arguments = TrainingArguments(
    output_dir=f"{options.output}/steps",
    max_steps=options.steps,
    learning_rate=5e-5,
    per_device_train_batch_size=2,
    remove_unused_columns=False,  # or the chats would not reach the collator
    save_strategy="no",
    logging_steps=1,
    report_to=[],
)
collator = octavo.ChatCollator(model.prompts)
Trainer(model.lclm, arguments, train_dataset=CHATS, data_collator=collator).train()

model.lclm.save_pretrained(f"{options.output}/model")  # with its tokenizers
trained = octavo.load(f"{options.output}/model")
print(trained.generate(QUESTION, trained.compress(PASSAGES[0]), max_new_tokens=40).text)
