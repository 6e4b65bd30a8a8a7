# The service as it is shipped: one static program and nothing else.
ARG BASE=golang:1.26-bookworm
FROM ${BASE} AS build
WORKDIR /src
COPY go.mod ./
RUN go mod download
COPY server server
RUN CGO_ENABLED=0 go build -buildvcs=false -trimpath -o /server ./server

FROM scratch
COPY --from=build /server /server
ENTRYPOINT ["/server"]
