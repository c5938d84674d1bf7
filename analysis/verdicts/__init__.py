"""A study's claims, judged: what each rests on in each setting, the verdicts, and subcases. No figures and no pages."""
