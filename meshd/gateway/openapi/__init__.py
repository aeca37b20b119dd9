"""The OpenAPI document of what the gateway serves to clients: data, and how it is put together."""
