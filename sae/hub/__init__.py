"""SAEs on the Hugging Face hub: parse their names (`hf:…`), fetch them, search well-known ones, and share runs."""
