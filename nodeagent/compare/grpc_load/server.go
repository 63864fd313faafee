package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const longest = 64 << 20

type streamed = func(request []byte, stream grpc.ServerStream) error

// unary methods answer one message with one.
var unary = map[string]func(context.Context, []byte) ([]byte, error){
	"Echo": func(_ context.Context, request []byte) ([]byte, error) { return request, nil },
	"Who":  func(context.Context, []byte) ([]byte, error) { return []byte(os.Getenv("GRPCLOAD_NAME")), nil },
	// Fail ends with the status whose number it is sent.
	"Fail": func(_ context.Context, request []byte) ([]byte, error) {
		code, _ := strconv.Atoi(string(request))
		return nil, status.Error(codes.Code(code), "as asked: 100% é")
	},
	// Wait answers after so many milliseconds.
	"Wait": func(ctx context.Context, request []byte) ([]byte, error) {
		milliseconds, _ := strconv.Atoi(string(request))
		select {
		case <-time.After(time.Duration(milliseconds) * time.Millisecond):
			return request, nil
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	},
	// Left answers for how long the client still waits, in milliseconds.
	"Left": func(ctx context.Context, _ []byte) ([]byte, error) {
		deadline, ok := ctx.Deadline()
		if !ok {
			return []byte("forever"), nil
		}
		return []byte(strconv.FormatInt(time.Until(deadline).Milliseconds(), 10)), nil
	},
	// Fields answers with the metadata that it was sent, and sends some in its head and its trailers.
	"Fields": func(ctx context.Context, _ []byte) ([]byte, error) {
		received, _ := metadata.FromIncomingContext(ctx)
		_ = grpc.SetHeader(ctx, metadata.Pairs("x-head", "h", "x-head-bin", "\x00\xff"))
		_ = grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "t"))
		told := map[string]string{}
		for name, values := range received {
			told[name] = strings.Join(values, ",")
		}
		return json.Marshal(told)
	},
}

// Count sends as many messages as it is asked for, of so many bytes: "COUNT SIZE"; 0: until the client leaves.
func count(request []byte, stream grpc.ServerStream) error {
	var messages, size int
	if _, err := fmt.Sscan(string(request), &messages, &size); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	message := bytes.Repeat([]byte{'m'}, size)
	for sent := 0; messages == 0 || sent < messages; sent++ {
		if err := stream.SendMsg(&message); err != nil {
			return err
		}
	}
	return nil
}

// Tick sends a message every so many milliseconds until the client leaves.
func tick(request []byte, stream grpc.ServerStream) error {
	milliseconds, _ := strconv.Atoi(string(request))
	name := []byte(os.Getenv("GRPCLOAD_NAME"))
	for {
		if err := stream.SendMsg(&name); err != nil {
			return err
		}
		select {
		case <-time.After(time.Duration(milliseconds) * time.Millisecond):
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}

// sum answers a stream of messages with how many bytes they had.
func sum(_ any, stream grpc.ServerStream) error {
	total := 0
	for {
		var message []byte
		if err := stream.RecvMsg(&message); err == io.EOF {
			answer := []byte(strconv.Itoa(total))
			return stream.SendMsg(&answer)
		} else if err != nil {
			return err
		}
		total += len(message)
	}
}

// chat answers each message as it comes.
func chat(_ any, stream grpc.ServerStream) error {
	for {
		var message []byte
		if err := stream.RecvMsg(&message); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(&message); err != nil {
			return err
		}
	}
}

func described() *grpc.ServiceDesc {
	made := &grpc.ServiceDesc{ServiceName: "load.Load", HandlerType: (*any)(nil)}
	for name, answer := range unary {
		handler := func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var request []byte
			if err := decode(&request); err != nil {
				return nil, err
			}
			reply, err := answer(ctx, request)
			return &reply, err
		}
		made.Methods = append(made.Methods, grpc.MethodDesc{MethodName: name, Handler: handler})
	}
	for name, answer := range map[string]streamed{"Count": count, "Tick": tick} {
		handler := func(_ any, stream grpc.ServerStream) error {
			var request []byte
			if err := stream.RecvMsg(&request); err != nil {
				return err
			}
			return answer(request, stream)
		}
		made.Streams = append(made.Streams, grpc.StreamDesc{StreamName: name, Handler: handler, ServerStreams: true})
	}
	made.Streams = append(made.Streams,
		grpc.StreamDesc{StreamName: "Sum", Handler: sum, ClientStreams: true},
		grpc.StreamDesc{StreamName: "Chat", Handler: chat, ClientStreams: true, ServerStreams: true})
	return made
}

// serve listens at each address until SIGTERM, which it answers as a good server does: by GOAWAY.
func serve(addresses []string) error {
	server := grpc.NewServer(grpc.MaxRecvMsgSize(longest))
	server.RegisterService(described(), new(any))
	checks := health.NewServer()
	healthpb.RegisterHealthServer(server, checks)
	failed := make(chan error, len(addresses))
	for _, address := range addresses {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		go func() { failed <- server.Serve(listener) }()
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	select {
	case err := <-failed:
		return err
	case <-ended:
		checks.Shutdown()
		server.GracefulStop()
		return nil
	}
}
