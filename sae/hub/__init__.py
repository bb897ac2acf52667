"""The Hugging Face hub: names of SAEs on it (`hf:…`), fetching them, finding well-known ones, sharing runs."""
