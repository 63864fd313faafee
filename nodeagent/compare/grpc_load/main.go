// grpcload is a gRPC server and a client of it, with grpc-go: load for `nodeagent compare`, and a
// real peer for the tests. Messages are plain bytes, so that no code is generated.
//
//	grpcload serve ADDRESS…        until it is ended
//	grpcload load -target A …      requests in a closed loop; prints one JSON object
//	grpcload call -target A …      single calls; prints what became of them as one JSON object
package main

import (
	"fmt"
	"os"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // first, so that ours stands in its place
	"google.golang.org/protobuf/proto"
)

// raw is a codec of bytes; what is a message of protobuf (health checks) stays one.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(value any) ([]byte, error) {
	if data, ok := value.(*[]byte); ok {
		return *data, nil
	}
	return proto.Marshal(value.(proto.Message))
}

func (raw) Unmarshal(data []byte, value any) error {
	if into, ok := value.(*[]byte); ok {
		*into = append((*into)[:0], data...)
		return nil
	}
	return proto.Unmarshal(data, value.(proto.Message))
}

func main() {
	encoding.RegisterCodec(raw{})
	commands := map[string]func([]string) error{"serve": serve, "load": load, "call": call}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: grpcload serve|load|call …")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "grpcload:", err)
		os.Exit(1)
	}
}
