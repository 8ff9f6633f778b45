"""The HTTP face of a stack: OpenAI's and SGLang's APIs, chat template, streaming. `serve.launch` and targets enter.

app ─> generation ─> chat_route | completion_route | native_route (a body to a Job) ─> service ─> engine
              <─ the job's answer writes the updates: one by one as events, or all as one reply
"""
