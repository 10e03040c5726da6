"""How fast does a server answer under load, alone or against a peer? Speaks only OpenAI's completions API."""
