"""Pictures and bytes: uploads to checked RGB pictures, pictures to PNG, WebP or JPEG, and the metadata in the files.

Pure functions of their arguments, called in threads. No queue, no HTTP, no model.
"""
