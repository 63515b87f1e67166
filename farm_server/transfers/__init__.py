"""Bulk bytes in and out: resumable uploads and their queue, bandwidth limits, and blobs that ride in messages.

It may import the control loop and what that may import; it knows nothing of tasks and of WebSockets.
"""
