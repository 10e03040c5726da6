"""How fast is a new expert there, and what do swaps under load cost those who are being answered?"""
