"""How a fusion policy is learnt and judged; its ``contract`` is all that serving may import."""
