"""The app `channels_asyncq.admin`: a page in Django's admin with the processes, their groups and channels."""
