"""The demonstration's application: Istio's bookinfo in small (``bookinfo.py``) and its reader
(``visitor.py``). They run in the lab's pods and use the standard library only.
"""
