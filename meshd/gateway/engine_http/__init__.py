"""HTTP/1.1 towards engines and other nodes' doors: one request at a time on kept connections.

A gateway's client needs no redirects, cookies, proxies or decompression, and every request pays
for what it does not need; so this is a parser in C (llhttp, by httptools), a flow-controlled
buffer, and a list of idle connections.
"""
