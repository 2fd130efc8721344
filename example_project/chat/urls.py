from django.urls import path, register_converter

from chat import views
from chat.rules import RoomConverter

register_converter(RoomConverter, "room")

app_name = "chat"
urlpatterns = [
    path("", views.index, name="index"),
    path("chat/<room:room>/", views.room, name="room"),
    path("chat/<room:room>/send/", views.send, name="send"),
]
