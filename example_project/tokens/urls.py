from django.urls import path

from tokens import views

app_name = "tokens"
urlpatterns = [
    path("", views.index, name="index"),
    path("ask/", views.ask, name="ask"),
    path("<int:pk>/", views.answer, name="answer"),
    path("<int:pk>/whole/", views.whole, name="whole"),
    path("<int:pk>/events/", views.events, name="events"),
]
