"""Ray: conversion, training and clusters."""
